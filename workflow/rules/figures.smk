"""One job a figure."""

from bilevel.plots import FIGURES

FIGURE_MODULES = {
    f"bilevel.plots.{drawing.module}"
    for figures in FIGURES.values()
    for drawing in figures.values()
}


rule figure:
    input:
        decks="report/decks.yaml",
        tables=lambda wildcards: f"results/tables/{FIGURES[wildcards.deck][wildcards.figure].table}.csv",
    output:
        "results/figures/{deck}/{figure}.svg",
    log:
        "results/logs/figures/{deck}/{figure}.log",
    conda:
        "../../envs/bilevel.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_hash("bilevel.plots", *FIGURE_MODULES),
    shell:
        "python -m bilevel figure {wildcards.deck} {wildcards.figure} --decks {input.decks}"
        " --tables results/tables --output {output} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
