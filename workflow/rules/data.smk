"""Data sets, found, checked and converted. Runs depend on the small digest: the same content re-runs nothing."""


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
    params:
        images=subpath(output.digest, strip_suffix=".json"),
        directories=CONFIG.data.directories,
        download="--download" if CONFIG.data.download else "",
    shell:
        "python -m bilevel data {wildcards.dataset} --output {params.images}.safetensors {params.download}"
        " --directories {params.directories:q} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
