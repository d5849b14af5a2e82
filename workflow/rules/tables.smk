"""From runs to tables, and from tables to verdicts."""


rule tables:
    input:
        expand("results/runs/{folder}/record.json", folder=RUNS),
    output:
        multiext(
            "results/tables/",
            scalars="scalars.csv",
            trace="trace.csv",
            histograms="histograms.csv",
            points="points.csv",
            structures="structures.csv",
            measurements="measurements.csv",
            cells="cells.csv",
            measured="measured.csv",
            timing="timing.csv",
            provenance="provenance.json",
        ),
    log:
        "results/logs/tables.log",
    group:
        "results"
    conda:
        "../../envs/bilevel.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        config=CONFIG_JSON,
        code=code_hash("bilevel.tables"),
        folder=subpath(output.scalars, parent=True),
    shell:
        "python -m bilevel tables --config {params.config:q} --runs results/runs --output {params.folder}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule claims:
    input:
        claims="report/claims.yaml",
        scalars="results/tables/scalars.csv",
    output:
        "results/tables/claims.csv",
    log:
        "results/logs/claims.log",
    group:
        "results"
    conda:
        "../../envs/bilevel.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        code=code_hash("bilevel.claims"),
    shell:
        "python -m bilevel claims --claims {input.claims} --scalars {input.scalars} --output {output}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
