"""Generation: every row as if it were alone and nothing were kept (invariants 37 and 38)."""

from __future__ import annotations

import functools
import hashlib
import random
from typing import Any

import pytest
import torch
import transformers

from lmedit import Lm
from lmedit.errors import RequestError
from lmedit.metrics import generate
from lmedit.metrics.generate import greedy, sample
from lmedit.tiny import byte_tokenizer, tiny_lm

LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
MIXED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT2),
    "gptj": ("GPTJConfig", GPT2 | {"rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "window_size": 4,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", LLAMA),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
    ),
    "llama": ("LlamaConfig", LLAMA),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": 4}),
    "qwen3": ("Qwen3Config", LLAMA),
    "gemma2": ("Gemma2Config", LLAMA | MIXED),
    "gemma3_text": ("Gemma3TextConfig", LLAMA | MIXED),
    "falcon": (
        "FalconConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "alibi": True,
        },
    ),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
}
PROMPTS = [
    "The tower stands in the old city by the river, and",
    "a",
    "Nobody knew",
    "A small boat came down the river in the morning",
    "北京是",
]
tokenizer_once = functools.cache(byte_tokenizer)
every_family = pytest.mark.parametrize("family", SHAPES)


def lm_of(family: str) -> Lm:
    """A random model of *family* in float64, so that no two tokens tie."""
    name, sizes = SHAPES[family]
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = getattr(transformers, name)(
        vocab_size=len(tokenizer_once()),
        initializer_range=0.3,
        tie_word_embeddings=False,
        **ends,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config).double()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return Lm(model.requires_grad_(False), tokenizer_once(), name=family)


def next_logits(lm: Lm, ids: list[int]) -> torch.Tensor:
    """The next token's logits by one plain pass over one row, nothing kept."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def plain_greedy(lm: Lm, prompt: str, count: int, ends: set[int]) -> list[int]:
    ids = list(lm.tokenizer(prompt)["input_ids"])
    new: list[int] = []
    while len(new) < count:
        best = int(next_logits(lm, ids + new).argmax())
        if best in ends:
            break
        new.append(best)
    return new


def plain_sampled(lm: Lm, prompt: str, total: int, top_k: int, seed: int) -> list[int]:
    """Inverse of the cumulated probabilities of the best ids, in the order of the ids."""
    digest = hashlib.sha256(f"{seed}|{prompt}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    ids = list(lm.tokenizer(prompt)["input_ids"])
    while len(ids) < total:
        logits = next_logits(lm, ids).tolist()
        best = sorted(sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k])
        weights = [torch.tensor(logits[i], dtype=torch.float64).exp().item() for i in best]
        left = torch.rand(1, generator=draw, dtype=torch.float64).item() * sum(weights)
        chosen = best[-1]
        for token, weight in zip(best, weights, strict=True):
            if left < weight:
                chosen = token
                break
            left -= weight
        ids.append(chosen)
    return ids


def text(lm: Lm, ids: list[int]) -> str:
    return lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def added(lm: Lm, prompt: str, new: list[int]) -> str:
    return text(lm, lm.encode(prompt) + new)[len(prompt) :]


@every_family
def test_greedy_in_a_batch_is_greedy_alone_without_a_cache(family: str) -> None:
    lm = lm_of(family)
    plain = [plain_greedy(lm, prompt, 12, {0}) for prompt in PROMPTS]
    assert greedy(lm, PROMPTS, 12) == [
        added(lm, prompt, new) for prompt, new in zip(PROMPTS, plain, strict=True)
    ]
    assert len(set(map(tuple, plain))) == len(PROMPTS), "rows that agree can hide a mix-up"
    assert any(len(set(new)) > 2 for new in plain), "a model that repeats hides wrong positions"


@every_family
def test_sampling_in_a_batch_is_sampling_alone_without_a_cache(family: str) -> None:
    lm = lm_of(family)
    plain = [text(lm, plain_sampled(lm, prompt, 30, 5, seed=3)) for prompt in PROMPTS]
    assert sample(lm, PROMPTS, 30, seed=3) == plain


@pytest.fixture(scope="module")
def gpt2() -> Lm:
    return lm_of("gpt2")


@pytest.mark.parametrize("batch_tokens", [1, 40, 90, 10**9])
@pytest.mark.parametrize("seed", range(2))
def test_batch_size_and_order_change_no_text(gpt2: Lm, batch_tokens: int, seed: int) -> None:
    order = random.Random(seed).sample(range(len(PROMPTS)), len(PROMPTS))
    shuffled = [PROMPTS[i] for i in order]
    alone = [greedy(gpt2, [prompt], 9)[0] for prompt in shuffled]
    assert greedy(gpt2, shuffled, 9, batch_tokens=batch_tokens) == alone
    alone = [sample(gpt2, [prompt], 25)[0] for prompt in shuffled]
    assert sample(gpt2, shuffled, 25, batch_tokens=batch_tokens) == alone


def test_a_batch_holds_no_more_tokens_than_asked_for(
    gpt2: Lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    keep = generate.keep

    def watched(lm: Lm, rows: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(rows))
        return keep(lm, rows, *args, **kwargs)

    monkeypatch.setattr(generate, "keep", watched)
    sample(gpt2, PROMPTS, 30, batch_tokens=60)
    assert sizes == [2, 2, 1]


def test_greedy_ends_before_end_of_text_row_by_row(gpt2: Lm) -> None:
    """The ends are taken from what the model writes: each row then stops at its own place."""
    endless = [plain_greedy(gpt2, prompt, 12, set()) for prompt in PROMPTS]
    end = endless[0][4]
    gpt2.model.generation_config.eos_token_id = [end, endless[1][2]]
    try:
        ends = {0, end, endless[1][2]}
        stopped = [plain_greedy(gpt2, prompt, 12, ends) for prompt in PROMPTS]
        assert len({len(new) for new in stopped}) > 1
        assert greedy(gpt2, PROMPTS, 12) == [
            added(gpt2, prompt, new) for prompt, new in zip(PROMPTS, stopped, strict=True)
        ]
    finally:
        gpt2.model.generation_config.eos_token_id = 0


def test_greedy_agrees_with_transformers_own(gpt2: Lm) -> None:
    for prompt in PROMPTS:
        ids = torch.tensor([gpt2.encode(prompt)])
        with torch.no_grad():
            out = gpt2.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
            )
        new = out[0, ids.shape[1] :].tolist()
        assert greedy(gpt2, [prompt], 10)[0] == added(gpt2, prompt, new)


def test_sampling_goes_on_after_end_of_text_and_drops_it_from_the_text() -> None:
    lm = tiny_lm()
    lm.model.transformer.ln_f.weight.data.zero_()
    lm.model.transformer.ln_f.bias.data = lm.model.lm_head.weight[0].clone() * 100
    assert int(next_logits(lm, [5, 7]).argmax()) == 0
    assert sample(lm, ["The tower"], 20, top_k=1) == ["The tower"]
    assert greedy(lm, ["The tower"], 20) == [""]


@pytest.mark.parametrize("total", [0, 1, 3, 12])
def test_the_total_length_counts_the_prompt(gpt2: Lm, total: int) -> None:
    plain = [plain_sampled(gpt2, prompt, total, 5, 0) for prompt in PROMPTS]
    for prompt, ids in zip(PROMPTS, plain, strict=True):
        assert len(ids) == max(total, len(gpt2.encode(prompt)))
    assert sample(gpt2, PROMPTS, total) == [text(gpt2, ids) for ids in plain]


def test_rows_fill_all_positions_though_others_are_longer(gpt2: Lm) -> None:
    """A row that is done must leave: its next position would lie behind the last one."""
    texts = sample(gpt2, PROMPTS, gpt2.max_positions)
    assert texts == [text(gpt2, plain_sampled(gpt2, p, gpt2.max_positions, 5, 0)) for p in PROMPTS]


def test_top_1_sampling_is_greedy(gpt2: Lm) -> None:
    new = greedy(gpt2, ["Nobody knew"], 10)[0]
    total = len(gpt2.encode("Nobody knew")) + 10
    assert sample(gpt2, ["Nobody knew"], total, top_k=1) == ["Nobody knew" + new]


def test_only_the_k_best_are_drawn_and_by_their_probabilities(gpt2: Lm) -> None:
    for prompt in (*PROMPTS, "The tower", "the river", "A small", "in", "and the city"):
        ids = gpt2.encode(prompt)
        best = next_logits(gpt2, ids).topk(3)
        chances = zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True)
        texts = {text(gpt2, [*ids, token]): p for token, p in chances}
        if len(texts) == 3:  # else two tokens are parts of a character and look alike
            break
    assert len(texts) == 3
    total = len(ids) + 1
    drawn = [sample(gpt2, [prompt], total, top_k=3, seed=s)[0] for s in range(300)]
    for one, p in texts.items():
        assert drawn.count(one) / 300 == pytest.approx(p, abs=0.1)
    assert set(drawn) <= set(texts)


def test_sampling_is_determined_by_seed_and_prompt_and_leaves_the_global_generator(
    gpt2: Lm,
) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = sample(gpt2, PROMPTS[:2], 30, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert sample(gpt2, [*PROMPTS[1::-1], PROMPTS[0]], 30, seed=1) == [*first[::-1], first[0]]
    assert sample(gpt2, PROMPTS[:2], 30, seed=2) != first


def test_no_prompts_no_tokens(gpt2: Lm) -> None:
    assert greedy(gpt2, [], 5) == sample(gpt2, [], 5) == []
    assert greedy(gpt2, PROMPTS[:2], 0) == ["", ""]


def test_a_top_k_beyond_the_vocabulary_takes_all(gpt2: Lm) -> None:
    assert sample(gpt2, ["The"], 5, top_k=10**6) == sample(
        gpt2, ["The"], 5, top_k=len(gpt2.tokenizer)
    )


@pytest.mark.parametrize("prompt", ["", "the river runs to the sea and " * 20])
def test_a_prompt_without_token_or_without_room_is_a_clear_error(gpt2: Lm, prompt: str) -> None:
    with pytest.raises(RequestError, match="the prompt"):
        greedy(gpt2, ["The tower", prompt], 5)
    with pytest.raises(RequestError, match="the prompt"):
        sample(gpt2, [prompt], 5)


def test_room_for_the_answer_is_asked_for_beforehand(gpt2: Lm) -> None:
    room = gpt2.max_positions - len(gpt2.encode("The tower"))
    greedy(gpt2, ["The tower"], room)
    with pytest.raises(RequestError, match="shorter"):
        greedy(gpt2, ["The tower"], room + 1)


def test_generation_leaves_no_gradient_and_no_change(gpt2: Lm) -> None:
    digest = gpt2.weights_digest()
    gpt2.model.requires_grad_(True)
    greedy(gpt2, PROMPTS[:2], 3)
    assert all(parameter.grad is None for parameter in gpt2.model.parameters())
    gpt2.model.requires_grad_(False)
    assert gpt2.weights_digest() == digest


class Blankless:
    """A tokenizer whose decoder drops a blank at a text's start, as SentencePiece does."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.inner.decode(*args, **kwargs).removeprefix(" ")


def test_the_blank_before_the_continuation_stays(gpt2: Lm) -> None:
    (new,) = (gpt2.encode(" river"),)
    blankless = Lm(gpt2.model, Blankless(gpt2.tokenizer), name="blankless")
    assert text(blankless, new) == "river"
    assert generate._added_text(blankless, gpt2.encode("The"), new) == " river"
