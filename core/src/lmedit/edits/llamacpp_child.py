"""A script: run a GGUF model in llama.cpp, with and without an adapter, in a process of its own.

llama.cpp ends the whole process where it meets a bad file, and writes to stdout. So lmedit starts
this script, which imports nothing of lmedit. It reads JSON from stdin and writes JSON to a file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TOP = 100
"""How many of the most probable tokens llama.cpp reports."""
BIAS = 1e6
"""A bias of logits that makes a token certain."""


def main() -> None:
    """Answer each prompt (token ids) once for each scale of the adapter."""
    asked = json.loads(sys.stdin.read())
    server = _server(asked)
    plain = asked["plain"]
    found = [
        [_ask(server, ids, scale, plain) for ids in asked["prompts"]] for scale in asked["scales"]
    ]
    Path(asked["out"]).write_text(json.dumps(found), encoding="utf-8")


def _server(asked: dict[str, Any]) -> Any:
    import xllamacpp

    wanted = xllamacpp.CommonParams()
    wanted.model.path = asked["model"]
    wanted.n_ctx, wanted.n_parallel, wanted.warmup, wanted.verbosity = 1024, 1, False, -1
    wanted.n_gpu_layers = 0
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = asked["threads"]
    full = xllamacpp.ggml_type.GGML_TYPE_F32
    wanted.cache_type_k, wanted.cache_type_v = full, full
    if asked["adapter"]:
        wanted.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(asked["adapter"], 1.0)]
    return xllamacpp.Server(wanted)


def _ask(server: Any, ids: list[int], scale: float, plain: int) -> list[tuple[int, float]]:
    """The most probable next tokens after *ids*: their ids and log-probabilities.

    llama.cpp reports none if it writes an end token or a part of a character. So a bias, which the
    reported numbers do not contain, makes it write the token *plain*.
    """
    told = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": TOP}
    told |= {"cache_prompt": False, "lora": [{"id": 0, "scale": scale}]}
    told["logit_bias"] = [[plain, BIAS]]
    answer = server.handle_completions(told)
    if "choices" not in answer:
        raise ValueError(str(answer))
    first = answer["choices"][0]["logprobs"]["content"][0]
    return [(each["id"], each["logprob"]) for each in first["top_logprobs"]]


if __name__ == "__main__":
    main()
