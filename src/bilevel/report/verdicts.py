"""The verdicts, as the page lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from bilevel.report import words
from bilevel.report.lookup import Lookup, mark, slug
from bilevel.report.model import NOT_RUN, VERDICTS, Claim, Earlier, Tally, Value
from bilevel.report.source import number


def claims(look: Lookup) -> list[Claim]:
    """Every verdict, in the order of the table."""
    spans = _spans(look)
    return [_claim(look, row, spans) for row in look.source.claims]


def tallies(claims: Sequence[Claim]) -> list[Tally]:
    """How many verdicts of each kind the slides' claims and the own questions have."""
    names = {"deck": "Claims of the slides", "project": "Our own questions"}
    found = dict.fromkeys([*names, *(claim.source for claim in claims)])
    verdicts = {source: [claim.verdict for claim in claims if claim.source == source] for source in found}
    return [
        Tally(names.get(source, source), [(kind, kinds.count(kind)) for kind in VERDICTS])
        for source, kinds in verdicts.items()
        if kinds
    ]


def choices(claims: Sequence[Claim]) -> dict[str, list[tuple[str, str]]]:
    """What the list of verdicts can be narrowed to: attribute -> (value, name); only where there is a choice."""
    names: dict[str, Callable[[str], str]] = {
        "verdict": str,
        "source": lambda key: {"deck": "Slides", "project": "Own questions"}.get(key, key),
        "study": str,
        "deck": lambda key: f"Deck {key}",
    }
    found = {key: list(dict.fromkeys(getattr(claim, key) for claim in claims)) for key in names}
    found["verdict"] = [kind for kind in VERDICTS if kind in found["verdict"]]
    return {key: [(value, names[key](value)) for value in values] for key, values in found.items() if len(values) > 1}


def _spans(look: Lookup) -> dict[str, float]:
    """For each metric the largest distance from zero that an effect of it reaches: one scale a metric."""
    spans: dict[str, float] = {}
    for row in look.source.claims:
        found = [abs(value) for key in ("effect", "low", "high") if (value := number(row[key])) is not None]
        spans[row["metric"]] = max([spans.get(row["metric"], 0.0), *found])
    return spans


def _claim(look: Lookup, row: Mapping[str, str], spans: Mapping[str, float]) -> Claim:
    verdict = _verdict(row)
    p = number(row["p_adjusted"])
    n = number(row["n"])
    seeds = number(row["seeds_to_decide"])
    return Claim(
        verdict=verdict,
        statement=row["statement"],
        deck=row["deck"],
        source=row["source"],
        study=look.study(row["study"]).name,
        published=row["published"],
        note=row["note"],
        effect=_effect(look, row, spans[row["metric"]]),
        n=words.DASH if not n else f"{n:.0f}",
        p=words.probability(p),
        p_sort="" if p is None else f"{p:.6g}",
        seeds=words.DASH if seeds is None else words.decimal(seeds, 0),
        rank=VERDICTS.index(verdict),
        anchor=slug(f"claim-{row['id']}-{row['study']}"),
        earlier=list(_earlier(look, row)),
    )


def _verdict(row: Mapping[str, str]) -> str:
    found = row["verdict"].replace("_", " ").strip()
    return found if found in VERDICTS else NOT_RUN


def _earlier(look: Lookup, row: Mapping[str, str]) -> Iterator[Earlier]:
    """What earlier runs found on the same claim in the same study."""
    for name, run in look.source.references.items():
        for other in run.claims:
            if (other["id"], other["study"]) == (row["id"], row["study"]) and _verdict(other) != NOT_RUN:
                effect, n = _effect(look, other, 0.0), number(other["n"])
                yield Earlier(name, _verdict(other), effect, words.DASH if not n else f"{n:.0f}")


def _effect(look: Lookup, row: Mapping[str, str], span: float) -> Value:
    metric = look.metric(row["metric"])
    effect, low, high = (number(row[key]) for key in ("effect", "low", "high"))
    if effect is None:
        return Value(gap=words.DASH)
    interval = words.DASH if metric.digits else ""
    drawn = mark(effect, low, high, (-span, span), 0.0)
    if low is not None and high is not None:
        bounds = (words.signed(bound * metric.scale, metric.digits) for bound in (low, high))
        interval = "[{}, {}]".format(*bounds)
    return Value(
        text=words.signed(effect * metric.scale, metric.digits),
        unit=words.difference_unit(metric),
        remark=metric.name,
        interval=interval,
        sort=f"{effect:.6g}",
        mark=replace(drawn, claimed=row["better"]) if drawn else None,
    )
