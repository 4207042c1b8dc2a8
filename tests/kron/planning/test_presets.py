"""The papers' shapes and their arithmetic: nothing is trained, nothing is downloaded."""

from __future__ import annotations

import pytest

from tests.kron.planning.test_factorise import Model
from tinykron import kron, nn
from tinykron.errors import ShapeError, TinykronError
from tinykron.kron.planning import presets
from tinykron.kron.restructure import dense_shapes
from tinykron.models.bert import Bert, BertConfig
from tinykron.models.gpt2 import GPT2, GPT2Config
from tinykron.nn import Unset

# KnGPT2 ---------------------------------------------------------------------------------------------------------------


def gpt2_shapes(vocabulary: int, width: int, layers: int) -> dict[str, tuple[int, int]]:
    shapes = {"embedding": (vocabulary, width)}
    for block in range(layers):
        shapes |= {f"blocks.{block}.attention.{part}": (width, width) for part in ("query", "key", "value", "output")}
        shapes |= {f"blocks.{block}.mlp.up": (4 * width, width), f"blocks.{block}.mlp.down": (width, 4 * width)}
    return shapes


def test_kngpt2_has_83_91_million_parameters() -> None:
    """papers.md 1.1: GPT-2 124M, its embedding and the odd blocks' matrices halved, the output head not counted."""
    vocabulary, context, width, layers = 50257, 1024, 768, 12
    block = 12 * width**2 + 13 * width  # six matrices, their biases, two norms
    gpt2 = (vocabulary + context) * width + layers * block + 2 * width
    assert gpt2 == 124_439_808
    plan = kron.kngpt2_plan(gpt2_shapes(vocabulary, width, layers))
    assert len(plan) == 1 + 6 * 6
    assert plan.total(gpt2) == 83_907_530
    assert {choice.shape for name, choice in plan.items() if "attention" in name} == {(384, 768)}
    assert plan["blocks.1.mlp.up"].shape == (1536, 768) and plan["blocks.1.mlp.down"].shape == (768, 1536)
    assert plan["embedding"].shape == (50257, 384) and plan["embedding"].other == (1, 2)
    without_output = {name: choice for name, choice in plan.items() if not name.endswith("output")}
    assert round(kron.KronPlan(without_output).total(gpt2) / 1e6, 2) == 85.68  # the other reading, refuted by "83 M"


def test_kngpt2_plan_of_a_model(device: str) -> None:
    model = Model(tied=False)
    plan = kron.kngpt2_plan(model)
    parts = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down"]
    assert list(plan) == ["embedding", *(f"blocks.{i}.{part}" for i in (1, 3) for part in parts)]
    assert plan == kron.kngpt2_plan(dense_shapes(model))
    small = kron.factorise(model, plan)
    assert small.parameter_count() == plan.total(model.parameter_count())
    assert isinstance(small.embedding, kron.KronEmbedding) and isinstance(small.head, nn.Embedding)


def test_kngpt2_plan_says_what_a_model_lacks() -> None:
    with pytest.raises(TinykronError, match="kngpt2_plan: the model has no dense matrix embedding$"):
        kron.kngpt2_plan({name: shape for name, shape in gpt2_shapes(6, 4, 2).items() if name != "embedding"})
    with pytest.raises(TinykronError, match="odd blocks are factorised, and the model has 1 block"):
        kron.kngpt2_plan(gpt2_shapes(6, 4, 1))
    small = kron.factorise(Model(), kron.kngpt2_plan(Model()))
    with pytest.raises(TinykronError, match=r"no dense matrix embedding, blocks\.1\.attention\.query, "):
        kron.kngpt2_plan(small)
    with pytest.raises(ShapeError, match=r"embedding \(6, 5\) cannot be halved, 5 is odd"):
        kron.kngpt2_plan(gpt2_shapes(6, 5, 2))


# KroneckerBERT --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert_base() -> Bert:
    model = Bert(BertConfig(), Unset())  # its memory is reserved, and never written
    assert round(model.parameter_count() / 1e6, 2) == 109.48
    return model


SEQUENCE = 128


@pytest.mark.parametrize(
    ("preset", "with_pooler", "without", "gflops"),  # papers.md 2.1: table 1, and what its shapes amount to
    [("kroneckerbert8", 14.65, 14.06, 5.47), ("kroneckerbert21", 5.23, 4.64, 1.40)],
)
def test_kroneckerbert(bert_base: Bert, preset: str, with_pooler: float, without: float, gflops: float) -> None:
    plan = kron.PRESETS[preset](bert_base)
    assert len(plan) == 1 + 6 * 12
    total = plan.total(bert_base.parameter_count())
    pooler = bert_base.pooler.parameter_count()
    assert (round(total / 1e6, 2), round((total - pooler) / 1e6, 2)) == (with_pooler, without)
    flops = SEQUENCE * sum(presets.published_flops(choice) for name, choice in plan.items() if name != "embedding")
    assert round(flops / 1e9, 2) == gflops


def test_bert_base_has_the_published_flops(bert_base: Bert) -> None:
    blocks = {name: shape for name, shape in dense_shapes(bert_base).items() if name.startswith("blocks.")}
    flops = SEQUENCE * sum(presets.published_flops(kron.Choice(shape, shape)) for shape in blocks.values())
    assert round(flops / 1e9, 2) == 21.73  # the paper, with 2 k for a product of k numbers: 21.74
    assert round(SEQUENCE * sum(2 * rows * columns for rows, columns in blocks.values()) / 1e9, 2) == 21.74


def test_kroneckerberts_shapes(bert_base: Bert) -> None:
    plan = kron.kroneckerbert21_plan(bert_base)
    found = {name: (plan[name].shape, plan[name].other) for name in ("embedding", "blocks.3.attention.key")}
    assert found == {"embedding": ((30522, 48), (1, 16)), "blocks.3.attention.key": ((384, 48), (2, 16))}
    assert (plan["blocks.3.mlp.up"].shape, plan["blocks.3.mlp.up"].other) == ((16, 2), (192, 384))
    assert (plan["blocks.3.mlp.down"].shape, plan["blocks.3.mlp.down"].other) == ((2, 16), (384, 192))


def test_kroneckerbert5_as_printed_is_no_compression(bert_base: Bert) -> None:
    attention = kron.Choice((768, 768), (384, 384), 4)
    assert attention.parameters == 589_840 > attention.parameters_before
    with pytest.raises(ShapeError, match="takes 1 to 4 terms"):  # with 4 the sum is any matrix
        kron.Choice((768, 768), (384, 384), 5)
    shapes = dense_shapes(bert_base)
    plan = kron.KronPlan(
        (name, kron.Choice(shapes[name], shape, 4))
        for i in range(12)
        for name, shape in {
            **{f"blocks.{i}.{part}": (384, 384) for part in presets.ATTENTION},
            f"blocks.{i}.mlp.up": (384, 384),
            f"blocks.{i}.mlp.down": (384, 384),
        }.items()
    )
    embedding = 30522 * 64 + 12 - 30522 * 768
    assert round((plan.total(bert_base.parameter_count()) + embedding) / 1e6, 1) == 45.5


def test_a_smaller_bert_takes_the_same_plans() -> None:
    small = Bert(BertConfig(64, 32, 2, 2, 128, 16), Unset())
    for preset in (kron.kroneckerbert8_plan, kron.kroneckerbert21_plan):
        assert kron.factorise(Bert(BertConfig(64, 32, 2, 2, 128, 16)), preset(small)).parameter_count() == preset(
            small
        ).total(small.parameter_count())
    with pytest.raises(ShapeError, match=r"kroneckerbert21_plan: embedding \(64, 24\) is not divided"):
        kron.kroneckerbert21_plan(Bert(BertConfig(64, 24, 2, 2, 96, 16), Unset()))


# Krony-PT -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2_small() -> GPT2:
    return GPT2(GPT2Config(), Unset())


@pytest.mark.parametrize(
    ("size", "millions", "within"),  # table I; the paper's 92.2 for four terms is the one that its shapes do not give
    [
        ("67M", 67.89, 0.005),
        ("74M", 74.1, 0.05),
        ("75M", 74.9, 0.05),
        ("80M", 80.0, 0.5),
        ("82M", 81.97, 0.005),
        ("86M", 86.0, 1.0),
        ("92M", 92.98, 0.005),
        ("96M", 96.13, 0.005),
    ],
)
def test_krony_pt(gpt2_small: GPT2, size: str, millions: float, within: float) -> None:
    plan = kron.krony_pt_plan(gpt2_small, size)
    assert set(plan) == {f"blocks.{i}.mlp.{part}" for i in range(12) for part in ("up", "down")}
    assert plan["blocks.0.mlp.down"].shape == plan["blocks.0.mlp.up"].shape[::-1]
    assert plan.total(gpt2_small.parameter_count()) / 1e6 == pytest.approx(millions, abs=within)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_say_what_a_model_lacks(name: str) -> None:
    class Empty(nn.Module):
        pass

    with pytest.raises(
        TinykronError, match=f"{name.rsplit('-', 1)[0].replace('-', '_')}_plan: the model has no dense matrix"
    ):
        kron.PRESETS[name](Empty())
    with pytest.raises(TinykronError, match="found size '1M', expected one of 67M, 74M"):
        kron.krony_pt_plan(Empty(), "1M")
