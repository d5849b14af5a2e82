"""The page."""

from glob import glob


rule report:
    input:
        decks="report/decks.yaml",
        tables=expand(
            "results/tables/{name}",
            name=[
                "cells.csv",
                "measured.csv",
                "claims.csv",
                "timing.csv",
                "provenance.json",
            ],
        ),
        figures=[
            f"results/figures/{deck}/{figure}.svg"
            for deck, figures in FIGURES.items()
            for figure in figures
        ],
        # of earlier runs, shown beside this one's
        references=sorted(glob("report/reference/*/*")),
    output:
        report(
            "results/report.html",
            category="Report",
            labels={"page": "main"},
            caption="../../report/page.rst",
        ),
    log:
        "results/logs/report.log",
    group:
        "results"
    conda:
        "../../envs/bilevel.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        code=code_hash("bilevel.report"),
        page=files_hash("src/bilevel/report"),
    shell:
        "python -m bilevel report --decks {input.decks} --tables results/tables --figures results/figures"
        " --references report/reference --output {output} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
