"""Sentence similarity: which pairs are read, what correlation comes out, and what real embeddings reach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import tinykron as tk
from tests import glue_files
from tinykron import data
from tinykron.commands import cli
from tinykron.errors import DataError, TinykronError
from tinykron.models.bert import Bert, sentence_embeddings
from tinykron.tasks import similarity

SHARED = Path(__file__).parents[3] / "shared" / "data"
CSV = 'A man rides.,"A man, riding.",4.75\n"He said ""no"".",A cat.,0.5\nA plane.,An air plane.,5.0\n'


@pytest.fixture(scope="module")
def model() -> Bert:
    return tk.load(data.weights_folder("bert-tiny")).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def test_pairs_of_a_file(file: Path) -> None:
    pairs = similarity.read(file)
    assert [pair.score for pair in pairs] == [4.75, 0.5, 5.0]
    assert (pairs[0].second, pairs[1].first) == ("A man, riding.", 'He said "no".')


def test_pairs_of_a_folder_are_those_of_the_benchmark(tmp_path: Path) -> None:
    pairs = similarity.read(glue_files.write("glue/stsb", tmp_path))
    assert pairs == [similarity.Pair('A "man" sings.', "A man eats.", 0.0), similarity.Pair("A dog.", "A dog.", 5.0)]


def test_the_correlations_are_those_of_the_cosines(model: Bert, file: Path) -> None:
    found, pairs = similarity.measure(model, file, batch=2), similarity.read(file)
    first, second = (sentence_embeddings(model, [getattr(p, side) for p in pairs]) for side in ("first", "second"))
    cosines, scores = np.einsum("nd,nd->n", first, second), [pair.score for pair in pairs]
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(cosines, scores)[0], abs=1e-5)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(cosines, scores)[0])
    assert (found.pairs, found.data) == (3, str(file))
    assert "(3 pairs)" in similarity.render(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A.,B.,1.0\nA.,B.\n", "line 2: expected two sentences and a score, found 2 cells"),
        ("A.,B.,much\nA.,B.,1\n", "line 1: expected a score, found 'much'"),
        ("A.,B.,nan\n", "line 1: expected a score, found 'nan'"),
        ('A.,"B.,1\n', "line 1: not CSV"),
        ("A.,B.,1.0\n", "expected two pairs at least, found 1"),
        ("", "expected two pairs at least, found 0"),
    ],
)
def test_what_does_not_fit_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"bad.csv.*{message}"):
        similarity.read(tmp_path / "bad.csv")


def test_a_file_that_is_not_there_and_a_model_without_embeddings(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        similarity.read(tmp_path / "none.csv")
    with pytest.raises(TinykronError, match="sentence embeddings are a BERT's, found a GPT2"):
        similarity.measure(tk.load(data.weights_folder("gpt2-tiny")), file)


def test_the_command_line_measures_it(file: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["eval", "--task", similarity.NAME, "--data", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 3
    assert cli.main(["eval", "--task", similarity.NAME]) == 2
    assert "expected --data" in capsys.readouterr().err


def test_published_embeddings_agree_with_people() -> None:
    """all-MiniLM-L6-v2 is made for this; a model whose weights were read wrongly would be near 0."""
    folder, pairs = SHARED / "minilm-l6-v2-fp16", SHARED / "stsb-en" / "stsb-en-dev.csv"
    if not folder.is_dir() or not pairs.is_file():
        pytest.skip("no shared/data/minilm-l6-v2-fp16 or stsb-en")
    found = similarity.agreement(tk.load(folder).eval(), similarity.read(pairs)[:300])
    assert found.spearman > 0.8
