"""One job: one method of one study, for some seeds."""


rule run:
    input:
        # none for a study whose task makes its own data
        digest=lambda wildcards: [
            f"results/data/{data}.json" for data in [study_of(wildcards).data] if data
        ],
        # for a study whose task distills one
        teachers=lambda wildcards: [
            f"results/teachers/{path}.json"
            for path in CONFIG.teachers_of(run_of(wildcards))
        ],
        # must be there, however new they are: what counts of them is in the digest
        tensors=lambda wildcards: [
            ancient(f"results/teachers/{path}.safetensors")
            for path in CONFIG.teachers_of(run_of(wildcards))
        ],
    output:
        multiext(
            "results/runs/{study}/{method}/{seeds}/",
            scalars="scalars.csv",
            trace="trace.csv",
            histograms="histograms.csv",
            points="points.csv",
            structures="structures.csv",
            measurements="measurements.csv",
            record=ensure("record.json", non_empty=True),
        ),
    log:
        "results/logs/runs/{study}/{method}/{seeds}.log",
    conda:
        "../../envs/bilevel.yaml"
    threads: CONFIG.compute.threads
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
        gpu=1 if CONFIG.compute.device == "cuda" else 0,
    params:
        folder=subpath(output.record, parent=True),
        # not an output: those of a job that failed are deleted
        checkpoint="results/checkpoints/{study}/{method}/{seeds}.safetensors",
        data=lambda wildcards, input: [
            f"--data {path.removesuffix('.json')}.safetensors" for path in input.digest
        ],
        teachers=lambda wildcards, input: [
            part for part in ["--teachers", *input.teachers] if input.teachers
        ],
        seeds=lambda wildcards: run_of(wildcards).seeds,
        spec=lambda wildcards: CONFIG.spec(wildcards.study, wildcards.method),
        # editing a method, a task or the core re-runs exactly what uses it
        code=lambda wildcards: run_code_hash(
            study_of(wildcards).task,
            study_of(wildcards).methods[wildcards.method].method,
        ),
    shell:
        "python -m bilevel run --study {wildcards.study} --method {wildcards.method} --seeds {params.seeds}"
        " --spec {params.spec:q} {params.data} {params.teachers}"
        " --checkpoint {params.checkpoint} --output {params.folder}"
        " >> {log} 2>&1 || {{ tail -n 5 {log} >&2; exit 1; }}"
