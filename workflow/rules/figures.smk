"""One job for the figures of a deck."""

from bilevel.plots import FIGURES

for deck, figures in FIGURES.items():

    rule:
        name:
            f"figures_{deck}"
        input:
            decks="report/decks.yaml",
            tables=expand(
                "results/tables/{table}.csv",
                table=sorted({drawing.table for drawing in figures.values()}),
            ),
        output:
            expand("results/figures/{deck}/{figure}.svg", deck=deck, figure=figures),
        log:
            f"results/logs/figures/{deck}.log",
        group:
            "results"
        conda:
            "../../envs/bilevel.yaml"
        resources:
            mem_mb=2000,
            runtime=10,
        params:
            code=code_hash(
                "bilevel.plots",
                *{f"bilevel.plots.{drawing.module}" for drawing in figures.values()},
            ),
            deck=deck,
            folder=subpath(output[0], parent=True),
        shell:
            "python -m bilevel figures {params.deck} --decks {input.decks} --tables results/tables"
            " --output {params.folder} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
