"""Data sets, found, checked and converted. Runs depend on the small digest: the same content re-runs nothing."""

import shlex

DATA_SOURCES = shlex.join(
    [
        *(["--download"] if CONFIG.data.download else []),
        "--directories",
        *CONFIG.data.directories,
    ]
)


rule data:
    output:
        digest="results/data/{dataset}.json",
    log:
        "results/logs/data/{dataset}.log",
    conda:
        "../../envs/bilevel.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
        # not a param: where a data set comes from does not change what it is, and so re-runs nothing
        sources=DATA_SOURCES,
    params:
        images=subpath(output.digest, strip_suffix=".json"),
    shell:
        "python -m bilevel data {wildcards.dataset} --output {params.images}.safetensors {resources.sources}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
