"""Language models of two languages: the vocabulary, batches, losses, perplexities, arms, seeds alone and in company."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bilevel.architecture import Genotype, contrastive
from bilevel.data import Corpus, Parallel
from bilevel.models.recurrent_cell import Lines, Masks, Reading
from bilevel.results import Result
from bilevel.settings import SettingsError
from bilevel.tasks import create_method, task_class
from bilevel.tasks.language_model import DecayedAdam, LanguageModel
from bilevel.tasks.language_model.lines import Stream, batches, locked_masks, whole
from bilevel.tasks.language_model.losses import contrast, line_loss, representations, slowness
from bilevel.tasks.language_model.retraining import Average, retrain
from bilevel.tasks.language_model.settings import Dropout, LanguageModelSettings
from bilevel.tasks.language_model.texts import Texts, divided
from bilevel.tasks.language_model.vocabulary import Vocabulary, normalized

CPU = torch.device("cpu")
NONE = {"embedding": 0.0, "inputs": 0.0, "cell_inputs": 0.0, "hidden": 0.0, "outputs": 0.0}
PHASE = {
    "hidden": 4,
    "rows": 4,
    "length": 8,
    "steps": 2,
    "optimizer": "adam",
    "learning_rate": 0.05,
    "weight_decay": 0.0,
    "evaluate_every": 1,
    "dropout": {**NONE, "hidden": 0.2, "inputs": 0.1, "cell_inputs": 0.1},
}
SMALL: dict[str, Any] = {
    "vocabulary": 280,
    "nodes": 2,
    "contrastive_pairs": 4,
    "structure_learning_rate": 0.1,
    "outer_size": 20,
    "validation_size": 8,
    "test_size": 9,
    "search": PHASE,
    "retraining": PHASE,
}
WORDS = [
    "the",
    "a",
    "light",
    "door",
    "window",
    "sensor",
    "is",
    "was",
    "open",
    "closed",
    "warm",
    "cold",
    "room",
    "house",
]
GERMAN = [
    "das",
    "ein",
    "Licht",
    "Tür",
    "Fenster",
    "Sensor",
    "ist",
    "war",
    "offen",
    "zu",
    "warm",
    "kalt",
    "Raum",
    "Haus",
]


def sentences(count: int, seed: int = 0) -> Parallel:
    draws = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(len(WORDS), (1 + index % 4,), generator=draws).tolist() for index in range(count)]
    en = tuple(" ".join(WORDS[i] for i in line) + f" {index}" for index, line in enumerate(drawn))
    return Parallel(en, tuple(" ".join(GERMAN[i] for i in line) + f" {index}" for index, line in enumerate(drawn)))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus("made", {"all": sentences(80)})


def build(corpus: Corpus, seeds: list[int] | None = None, study: str = "study", **settings: Any) -> LanguageModel:
    cls = task_class("language_model")
    task = cls(study, cls.read_settings({**SMALL, **settings}), corpus, seeds or [0], CPU)
    assert isinstance(task, LanguageModel)
    return task


def run(task: LanguageModel, method: str = "first_order") -> Result:
    return task.run(create_method("language_model", method, {}), "run")


def settings_of(**settings: Any) -> LanguageModelSettings:
    read = LanguageModel.read_settings({**SMALL, **settings})
    assert isinstance(read, LanguageModelSettings)
    return read


# --- the vocabulary


@pytest.mark.parametrize("line", ["Tür  öffnen", "a {sensor_name} — 20 °C", "日本\tx", "", " <eos> [en]!"])
def test_encoding_comes_back(line: str) -> None:
    vocabulary = Vocabulary(["the door is open", "die Tür ist offen"] * 3, 270, ("en", "de"))
    (tokens,) = vocabulary.encode([line], "de")
    assert vocabulary.decode(tokens) == normalized(line)
    assert max(tokens) < 270
    assert tokens[0] != vocabulary.encode([line], "en")[0][0]
    assert tokens[-1] == vocabulary.encode([""], "en")[0][-1]


def test_vocabulary_is_learned_from_training_lines_alone(corpus: Corpus) -> None:
    settings = settings_of()
    share = divided(corpus, settings, "study", 0)
    hidden = {pair[0] for pair in (*share.validation, *share.test)}
    other = [
        (en.replace("light", "zzzzzz"), de.replace("Licht", "qqqqqq")) if en in hidden else (en, de)
        for en, de in zip(corpus.splits["all"].en, corpus.splits["all"].de, strict=True)
    ]
    changed = Corpus("made", {"all": Parallel(*map(tuple, zip(*other, strict=True)))})
    line = ["the light is open zzzzzz qqqqqq"]
    first, second = (Texts("study", settings, one, 0).vocabulary for one in (corpus, changed))
    assert first.encode(line, "en") == second.encode(line, "en")
    assert any("zzzzzz" in en for en, _ in divided(changed, settings, "study", 0).test)


def test_sets_are_disjoint_and_whole(corpus: Corpus) -> None:
    share = divided(corpus, settings_of(), "study", 0)
    sets = [share.search, share.outer, share.validation, share.test]
    assert [len(one) for one in sets] == [43, 20, 8, 9]
    assert len({pair for one in sets for pair in one}) == 80
    assert [*share.outer, *share.search] == list(share.train)
    assert share != divided(corpus, settings_of(), "study", 1)


def test_official_splits_are_kept() -> None:
    corpus = Corpus("made", {name: sentences(20, seed) for seed, name in enumerate(("train", "validation", "test"))})
    share = divided(corpus, settings_of(outer_set="validation", validation_size=None, test_size=5), "study", 0)
    test, validation = corpus.splits["test"], corpus.splits["validation"]
    assert share.test == list(zip(test.en, test.de, strict=True))[:5]
    assert share.outer == share.validation == list(zip(validation.en, validation.de, strict=True))
    assert len(share.search) == len(share.train) == 20


@pytest.mark.parametrize(
    ("counts", "settings", "message"),
    [
        ({"all": 80}, {"test_size": None}, "test_size"),
        ({"all": 30}, {}, "outer_size"),
        ({"all": 80}, {"train_size": 70}, "train_size"),
        ({"train": 80, "validation": 5, "test": 20}, {}, "validation_size: 8 pairs are asked for"),
    ],
)
def test_too_few_pairs_are_refused(counts: dict[str, int], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LanguageModel.check_data(settings_of(**settings), "made", counts)


def test_data_is_needed() -> None:
    with pytest.raises(SettingsError, match="parallel text"):
        LanguageModel.check_data(settings_of(), None, {})


# --- batches


def orders(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


ENGLISH = [[1, *range(10 * k, 10 * k + k % 5 + 1), 2] for k in range(1, 12)]
GERMAN_LINES = [[3, *range(10 * k + 5, 10 * k + 5 + k % 3 + 1), 2] for k in range(1, 12)]


def read_back(lines: Lines, language: int) -> dict[int, list[int]]:
    """Lines of a language by the place of their pair."""
    found: dict[int, list[int]] = {}
    for row in range(lines.tokens.shape[2]):
        for step in range(len(lines.tokens)):
            place = int(lines.pairs[step, language, row])
            assert bool(lines.real[step, language, row]) == (place >= 0)
            if place < 0:
                continue
            token, target = int(lines.tokens[step, language, row]), int(lines.targets[step, language, row])
            assert bool(lines.goes_on[step, language, row]) == (place in found)
            assert place not in found or found[place][-1] == token
            found.setdefault(place, [token]).append(target)
    return found


def test_batches_hold_whole_lines_and_their_translations() -> None:
    stream, seen = batches([ENGLISH, GERMAN_LINES], 2, 9, orders, cut_first=False), list[int]()
    while len(seen) < len(ENGLISH):
        batch = next(stream)
        english, german = read_back(batch, 0), read_back(batch, 1)
        assert sorted(english) == sorted(german) == list(range(len(english)))
        pairs = [ENGLISH.index(english[place]) for place in sorted(english)]
        assert pairs == [GERMAN_LINES.index(german[place]) for place in sorted(german)]
        seen += pairs
    assert sorted(seen[: len(ENGLISH)]) == list(range(len(ENGLISH)))


def test_long_lines_are_cut() -> None:
    batch = next(batches([[[1, 5, 6, 7, 8, 2]]], 1, 3, orders, cut_first=False))
    assert read_back(batch, 0) == {0: [1, 5, 6, 7]}


def test_first_lines_of_rows_may_begin_anywhere() -> None:
    batch = next(batches([ENGLISH * 3], 6, 9, orders, cut_first=True))
    lines = read_back(batch, 0)
    assert all(any(line == whole_line[-len(line) :] for whole_line in ENGLISH) for line in lines.values())
    assert len(set(batch.tokens[0, 0].tolist())) > 1
    firsts = {int(place) for place in batch.pairs[0, 0]}
    assert all(line in ENGLISH for place, line in lines.items() if place not in firsts)


def test_streams_can_be_gone_back_in() -> None:
    stream = Stream(lambda: batches([ENGLISH], 2, 9, orders, cut_first=True))
    first = [stream[index].tokens for index in (0, 1, 4)]
    assert all(torch.equal(stream[index].tokens, was) for index, was in zip((4, 1, 0), reversed(first), strict=False))


def test_all_lines_of_a_set_are_whole() -> None:
    found = [line for block in whole(ENGLISH, 4) for line in read_back(block, 0).values()]
    assert sorted(found) == sorted(ENGLISH)


def test_masks_are_left_out_or_have_mean_one() -> None:
    dropout = Dropout(embedding=0.5, inputs=0.5, cell_inputs=0.25, hidden=0.0, outputs=0.0)
    masks = locked_masks(dropout, 4000, (2, 30, 40), torch.Generator().manual_seed(0))
    assert masks.hidden is None
    assert masks.outputs is None
    assert masks.embedding is not None
    assert masks.inputs is not None
    assert set(masks.embedding.unique().tolist()) == {0.0, 2.0}
    assert masks.inputs.max() == pytest.approx(1 / (0.5 * 0.75))
    assert masks.inputs.mean() == pytest.approx(1, abs=0.1)


# --- losses


def reading(lines: Lines) -> Reading:
    draws = torch.Generator().manual_seed(5)
    shape = lines.tokens.shape
    return Reading(torch.rand(shape, generator=draws).double(), torch.randn(*shape, 3, generator=draws).double())


def test_losses_by_hand() -> None:
    lines = next(batches([ENGLISH, GERMAN_LINES], 3, 9, orders, cut_first=False))
    found = reading(lines)
    by_language, changes = [], []
    groups: list[dict[int, list[Tensor]]] = [{}, {}]
    for language in (0, 1):
        own = []
        for row in range(3):
            for step in range(9):
                if not lines.real[step, language, row]:
                    continue
                own.append(found.losses[step, language, row])
                hidden = found.hidden[step, language, row]
                groups[language].setdefault(int(lines.pairs[step, language, row]), []).append(hidden)
                if lines.goes_on[step, language, row]:
                    changes.append((hidden - found.hidden[step - 1, language, row]).square().mean())
        by_language.append(torch.stack(own).mean())
    torch.testing.assert_close(line_loss(found, lines), sum(by_language) / 2)
    torch.testing.assert_close(slowness(found, lines), torch.stack(changes).mean())
    count = len(groups[0])
    means = [torch.stack([torch.stack(own[place]).mean(0) for place in range(count)]) for own in groups]
    labels = torch.arange(count)
    forth, back = (
        contrastive(means[0], labels, means[1], labels, 0.5),
        contrastive(means[1], labels, means[0], labels, 0.5),
    )
    for pairs in (count, count + 3):
        torch.testing.assert_close(contrast(found, lines, pairs, 0.5), (forth + back) / 2)
    fewer = representations(found, lines, 2)
    torch.testing.assert_close(fewer[0], torch.stack([own[:2] for own in means]))


def test_decayed_adam_adds_the_decay() -> None:
    hyper, gradient = torch.tensor([[1.0, -2.0]]), torch.tensor([[-0.5, 1.0]])
    moved = DecayedAdam(0.1, 0.5).step(hyper, gradient)
    torch.testing.assert_close(moved, torch.tensor([[1.0, -2.0]]))  # the decay cancels the gradient


# --- retraining


def test_the_best_parameters_are_kept() -> None:
    from bilevel.optimizers import SGD

    def loss(params: Tensor, hyper: Tensor, batch: Tensor) -> Tensor:
        return -(params * batch).sum()

    found = retrain(
        loss,
        SGD(learning_rate=1.0),
        torch.zeros(1),
        lambda step: torch.ones(1, 1),
        steps=7,
        evaluate=lambda params: abs(float(params[0]) - 4),
        evaluate_every=2,
        patience=9,
    )
    assert found.tolist() == [4.0]


def test_averages_begin_after_a_worse_evaluation() -> None:
    average = Average(2)
    for value, params in ((3.0, 0.0), (2.0, 1.0), (2.5, 2.0)):
        average.add(torch.tensor([params]))
        average.evaluated(value, torch.tensor([params]))
        assert average.of(torch.tensor([params])).tolist() == [params]
    average.evaluated(3.5, torch.tensor([3.0]))  # worse than 3.0 and 2.0, the ones before the last two
    average.add(torch.tensor([5.0]))
    average.add(torch.tensor([7.0]))
    assert average.of(torch.tensor([7.0])).tolist() == [5.0]


# --- the task


@pytest.mark.parametrize("arm", ["single_en", "single_de", "union", "multimodel"])
def test_arms_have_their_metrics_and_structures(corpus: Corpus, arm: str) -> None:
    task = build(corpus, arm=arm)
    result = run(task)
    languages = {"single_en": ["en"], "single_de": ["de"]}.get(arm, ["en", "de"])
    assert result.alive.tolist() == [True]
    for split in ("validation", "test"):
        for language in languages:
            for name in ("search_perplexity", "perplexity", "word_perplexity", "unigram_perplexity"):
                assert 1 < result.summary[f"{name}_{split}_{language}"].item() < 1e12
    assert ("edges_shared" in result.summary) == (arm == "multimodel")
    assert list(result.trace) == [0, 1, 2]
    weights = [result.trace[2][f"weight_{name}_{languages[0]}"].item() for name in task.space.operations]
    assert sum(weights) == pytest.approx(1)
    rows = result.structures
    assert len(rows) == len(languages) * len(task.space.edges) * 5
    assert {row.domain for row in rows} == set(languages)
    assert sum(row.chosen for row in rows) == 2 * len(languages)
    same = [row.weight for row in rows[: len(rows) // 2]] == [row.weight for row in rows[len(rows) // 2 :]]
    assert same == (arm == "union") or len(languages) == 1


@pytest.mark.parametrize(("method", "settings"), [("darts", {}), ("truncated", {}), ("aggregated", {"gamma": 0.9})])
def test_other_methods_move_the_structure_otherwise(corpus: Corpus, method: str, settings: dict[str, Any]) -> None:
    brief = {**PHASE, "steps": 1}
    task = build(corpus, search=brief, retraining=brief)
    result = task.run(create_method("language_model", method, settings), "run")
    first = run(build(corpus, search=brief, retraining=brief))
    assert result.alive.tolist() == [True]
    assert result.summary["hessian_products"].item() + result.summary["gradients"].item() > 2
    assert [row.weight for row in result.structures] != [row.weight for row in first.structures]


def test_runs_repeat_and_seeds_are_the_same_in_company(corpus: Corpus) -> None:
    together, again, alone = (run(build(corpus, seeds)) for seeds in ([3, 5], [3, 5], [5]))
    for name, values in together.summary.items():
        assert torch.equal(values, again.summary[name])
        torch.testing.assert_close(values[1], alone.summary[name][0], rtol=1e-3, atol=1e-3)
    for step, metrics in together.trace.items():
        for name, values in metrics.items():
            torch.testing.assert_close(values[1].double(), alone.trace[step][name][0].double(), rtol=1e-3, atol=1e-3)


def test_search_and_outer_batches_do_not_share_lines(corpus: Corpus) -> None:
    task = build(corpus, arm="single_en", retraining={**PHASE, "steps": 1})
    texts = task._texts[0]
    searched = {en for en, _ in texts.share.search}
    for split in (texts.share.outer, texts.share.validation, texts.share.test):
        assert not searched & {en for en, _ in split}


def test_test_lines_change_nothing_but_their_own_metrics(corpus: Corpus) -> None:
    """Neither the search, nor what is chosen, nor the retraining sees the test set."""
    settings = settings_of()
    hidden = {en for en, _ in divided(corpus, settings, "study", 0).test}
    other = [
        (f"{en} quite another end", f"{de} ganz anders") if en in hidden else (en, de)
        for en, de in zip(corpus.splits["all"].en, corpus.splits["all"].de, strict=True)
    ]
    changed = Corpus("made", {"all": Parallel(*map(tuple, zip(*other, strict=True)))})
    first, second = run(build(corpus)), run(build(changed))
    for name, values in first.summary.items():
        assert torch.equal(values, second.summary[name]) != ("_test_" in name), name


def test_perplexities_by_hand(corpus: Corpus) -> None:
    task = build(corpus)
    genotypes: list[Genotype] = task._genotypes(task.start()[1][0])
    best = task._retrained(0, genotypes)
    result = task.summarize(*task.start(), [])
    texts = task._texts[0]
    from bilevel import functional
    from bilevel.models.recurrent_cell import DiscreteNetwork

    for language, genotype in zip((0, 1), genotypes, strict=True):
        _, forward = functional(DiscreteNetwork([genotype], 280, 4))
        total, tokens, words = 0.0, 0, 0
        for pair in texts.share.test:
            (line,) = texts.vocabulary.encode([pair[language]], ("en", "de")[language])
            column = torch.tensor(line).view(-1, 1, 1)
            ones = torch.ones_like(column[1:], dtype=torch.bool)
            goes_on = ones.clone()
            goes_on[0] = False
            read = forward(best, Lines(column[:-1], column[1:], ones, goes_on, column[1:]), Masks())
            total += float(read.losses.double().sum())
            tokens += len(line) - 1
            words += len(pair[language].split()) + 1  # the end of a line is foretold too
        name = ("en", "de")[language]
        assert result[f"perplexity_test_{name}"].item() == pytest.approx(math.exp(total / tokens), rel=1e-5)
        assert result[f"word_perplexity_test_{name}"].item() == pytest.approx(math.exp(total / words), rel=1e-5)


def test_training_lowers_the_perplexity(corpus: Corpus) -> None:
    longer = {**PHASE, "steps": 24, "learning_rate": 0.1, "evaluate_every": 24, "dropout": NONE}
    result = run(build(corpus, search=longer, retraining=longer, beta_contrastive=0.1))
    for language in ("en", "de"):
        searched = [row[f"search_perplexity_validation_{language}"].item() for row in result.trace.values()]
        assert searched[-1] < 0.8 * searched[0]
        assert result.summary[f"perplexity_test_{language}"].item() < 0.5 * 280
