"""`lmedit publish`: a folder for the hub, its card, and the upload to a hub made here."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from lmedit import LowRank, Update, load_lm
from lmedit.actions.publish import licence_of
from lmedit.edits.ledger import applied, base_of, update_digest
from lmedit.edits.patches import save_patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

    from lmedit import Lm

    Run = Callable[..., Result]

pytest.importorskip("peft", reason="the extra lmedit[adapters] is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
PROMPT = "The tower is in"
EVIL = 'A\n---\nlicense: evil\n```\n# head | <script>x</script> [a](http://evil.test) `b` "c" \\'


@pytest.fixture
def base(model: Path) -> Lm:
    return load_lm(str(model))


def write_patch(name: str, base: Lm, layer: int = 1, **more: Any) -> str:
    """Write a random patch of *base*; return its id."""
    site, draw = base.mlp_out(layer), torch.Generator().manual_seed(layer)
    rows, columns = base.weight(site).shape
    left, right = (torch.randn(*s, generator=draw) for s in ((rows, 1), (1, columns)))
    update = Update({site: LowRank(left, right)})
    request = {"prompt": "{} is in", "subject": "The tower", "target_new": "Rome"}
    facts = {
        "method": "test",
        "version": "1",
        "request": request,
        "options": {"file": str(base.folder), "seed": 0},
        "model": base_of(base, update),
        "metrics": {
            "before": {"target_new": 0.125, "perplexity": 10.0},
            "after": {"target_new": 0.75, "perplexity": 10.5},
            "verdict": "took",
        },
    }
    save_patch(Path(f"{name}.safetensors"), update, facts | more)
    return update_digest(update)


def card(folder: str) -> tuple[dict[str, Any], str]:
    """The front matter and the text of the card in *folder*."""
    text = Path(folder, "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def check_no_place(folder: str, *places: object) -> None:
    """No file in *folder* holds a path of this machine."""
    for file in Path(folder).rglob("*"):
        if file.is_file():
            for place in places:
                assert str(place).encode() not in file.read_bytes(), file


def test_an_adapter_comes_with_its_card(lmedit: Run, model: Path, base: Lm, tmp_path: Path) -> None:
    from peft import PeftModel

    id_ = write_patch("one", base)
    flags = ("-m", model, "--base-id", "me/tiny", "--licence", "MIT")
    done = lmedit("publish", "one.safetensors", *flags, "-O", "pub")
    assert done.exit_code == 0, done.output
    assert done.stdout == "pub: 1 edit(s) of tiny as an adapter, with README.md\n"
    front, body = card("pub")
    assert front == {
        "license": "mit",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lmedit", "knowledge-editing"],
        "base_model": "me/tiny",
        "base_model_relation": "adapter",
    }
    row = (
        "| The tower is in | Rome | test | 0.125 to 0.750 | not measured | 10.000 to 10.500 | took"
    )
    assert row in body
    assert id_ in body
    assert base.digest in body
    assert '"largest difference of logits in peft": ' in body
    assert "model.disable_adapter()" in body
    config = json.loads(Path("pub", "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/tiny"
    check_no_place("pub", model, tmp_path)
    ids = base.batch([base.encode(PROMPT)]).ids
    served = PeftModel.from_pretrained(load_lm(str(model)).model, "pub")
    from lmedit import load_patch

    with torch.no_grad(), applied(base, load_patch(Path("one.safetensors"))[0]):
        torch.testing.assert_close(served(input_ids=ids).logits, base.model(input_ids=ids).logits)
    again = lmedit("publish", "one.safetensors", *flags, "-O", "pub")
    assert again.exit_code == 0, again.output  # its own folder is replaced


def test_a_model_comes_with_its_card_and_its_way_back(
    lmedit: Run, model: Path, base: Lm, tmp_path: Path
) -> None:
    ids = [write_patch("one", base, 1), write_patch("two", base, 2)]
    done = lmedit(
        "publish", "one.safetensors", "two.safetensors", "-m", model, "--as", "model", "-O", "pub"
    )
    assert done.exit_code == 0, done.output
    assert "licence of the base is unknown" in done.stderr
    assert "--base-id OWNER/NAME" in done.stderr
    front, body = card("pub")
    assert (front["license"], front["library_name"]) == ("unknown", "transformers")
    assert "base_model" not in front
    assert "is unknown to lmedit" in body
    check_no_place("pub", model, tmp_path)
    edited = load_lm("pub")
    assert json.loads(Path("pub/lmedit-ledger.json").read_text())["weights"] in body
    assert edited.weights_digest() != base.weights_digest()
    (command,) = [line for line in body.splitlines() if line.startswith("lmedit revert")]
    assert [id_[:12] for id_ in ids] == command.split()[3:]
    assert lmedit("verify", "pub").exit_code == 0
    done = lmedit(*command.replace("THIS_FOLDER", "pub").split()[1:])
    assert done.exit_code == 0, done.output
    assert load_lm("pub").weights_digest() == base.weights_digest()


def test_texts_of_facts_are_no_markup(lmedit: Run, model: Path, base: Lm) -> None:
    request = {"prompt": "{} is", "subject": EVIL, "target_new": "| x |\n\n# y"}
    write_patch("one", base, request=request, method="[m](http://evil.test)")
    plain = card_of_plain(lmedit, model, base)
    assert lmedit("publish", "one.safetensors", "-m", model, "-O", "pub").exit_code == 0
    front, body = card("pub")
    assert front == plain[0]
    assert tags(body) == tags(plain[1])
    facts = json.loads(Path("pub", "lmedit_edit.json").read_text(encoding="utf-8"))
    assert facts["edits"][0]["request"]["subject"] == EVIL


def card_of_plain(lmedit: Run, model: Path, base: Lm) -> tuple[dict[str, Any], str]:
    write_patch("plain", base)
    assert lmedit("publish", "plain.safetensors", "-m", model, "-O", "plain").exit_code == 0
    return card("plain")


def tags(body: str) -> list[str]:
    """The tags of *body* as a page, in their order."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inner = [each for token in tokens for each in [token, *(token.children or [])]]
    kinds = {
        "heading_open",
        "link_open",
        "html_inline",
        "html_block",
        "fence",
        "tr_open",
        "td_open",
    }
    return [f"{each.type} {each.attrGet('href') or ''}" for each in inner if each.type in kinds]


def test_many_facts_are_listed_in_part(lmedit: Run, model: Path, base: Lm) -> None:
    requests = [
        {"prompt": "{} is in", "subject": f"Tower {i}", "target_new": "Rome"} for i in range(50)
    ]
    write_patch("many", base, request={}, requests=requests)
    assert lmedit("publish", "many.safetensors", "-m", model, "-O", "pub").exit_code == 0
    _, body = card("pub")
    assert "and 30 more facts of this edit" in body
    assert "Tower 19" in body
    assert "Tower 20" not in body


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--public"], "--public is for --push"),
        (["--as", "model", "--rank", "2"], "--rank is for adapters"),
        (["--rank", "2"], "--rank is for dense changes"),
        (["--base-id", "a b"], "is no id of the hub"),
        (["--base-id", "../x"], "is no id of the hub"),
        (["--licence", "MIT\nx: y"], "is no identifier"),
        (["--push", "me/a/b"], "is no id of the hub"),
        (["--push", "me/tiny"], "hf auth login"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    lmedit: Run,
    model: Path,
    base: Lm,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    log_out(monkeypatch)
    write_patch("one", base)
    done = lmedit("publish", "one.safetensors", "-m", model, "-O", "pub", *arguments)
    assert done.exit_code != 0
    assert done.stdout == ""
    assert words in done.stderr.splitlines()[-1]
    assert not Path("pub").exists()


def test_another_folder_and_an_edited_base_are_refused(lmedit: Run, model: Path, base: Lm) -> None:
    write_patch("one", base, 1)
    write_patch("two", base, 2)
    Path("pub").mkdir()
    for kind in ("adapter", "model"):
        done = lmedit("publish", "one.safetensors", "-m", model, "--as", kind, "-O", "pub")
        assert done.exit_code == 1
        assert "pub exists and is not an" in done.stderr
        assert not [*Path("pub").iterdir()]
    assert lmedit("apply", "one.safetensors", "-m", model, "-O", "edited").exit_code == 0
    done = lmedit("publish", "two.safetensors", "-m", "edited", "-O", "new")
    assert done.exit_code == 1
    assert "edited holds edits" in done.stderr
    assert not Path("new").exists()


def test_the_licence_comes_from_the_source(tmp_path: Path, model: Path) -> None:
    assert licence_of(load_lm("demo")) == "apache-2.0"
    lm = load_lm(str(model))
    assert licence_of(lm) is None
    lm.folder = tmp_path
    for text, found in (
        ("---\nlicense: MIT\ntags: [x]\n---\n# x", "mit"),
        ("---\nlicense: other\n---\n", None),
        ("no front\nlicense: mit\n", None),
        ("---\nlicense: [a, b]\n---\n", None),
    ):
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert licence_of(lm) == found


# ---- a hub made here


def log_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token of the user is found."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(Path("no-token").resolve()))


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does, and keeps what it receives."""

    seen: list[tuple[str, str, bytes]] = []  # noqa: RUF012
    denies = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.path, self.headers.get("Authorization", ""), body))
        if self.denies:
            self.answer({"error": "denied"}, 403)
        elif self.path.endswith("/repos/create"):
            self.answer({"url": "https://huggingface.co/me/tiny", "id": "1"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]
            ]
            self.answer({"files": [each | {"shouldIgnore": False} for each in files]})
        elif "/commit/" in self.path:
            self.answer(
                {
                    "commitUrl": "https://huggingface.co/me/tiny/commit/0",
                    "commitOid": "0" * 40,
                    "success": True,
                }
            )
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer({"id": "me/tiny", "siblings": []})

    def answer(self, value: object, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """A hub on this machine, and a token for it."""
    from huggingface_hub import constants

    class Own(FakeHub):
        seen: list[tuple[str, str, bytes]] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    yield Own
    server.shutdown()
    server.server_close()


def test_push_uploads_the_folder_with_the_users_login(
    lmedit: Run, model: Path, base: Lm, hub: type[FakeHub]
) -> None:
    write_patch("one", base)
    arguments = ("publish", "one.safetensors", "-m", model, "-O", "pub")
    assert lmedit(*arguments).exit_code == 0
    assert not hub.seen  # nothing without --push
    done = lmedit(*arguments, "--push", "me/tiny")
    assert done.exit_code == 0, done.output
    assert "pushed: " in done.stdout
    paths = [path for path, _, _ in hub.seen]
    assert any(path.endswith("/repos/create") for path in paths)
    assert {login for _, login, _ in hub.seen} <= {"Bearer hf_mine", ""}
    (created,) = (json.loads(body) for path, _, body in hub.seen if path.endswith("create"))
    assert created.get("private") is True or created.get("visibility") == "private", created
    (sent,) = (body for path, _, body in hub.seen if "/commit/" in path)
    names = {
        json.loads(line)["value"]["path"]
        for line in sent.splitlines()
        if json.loads(line)["key"] == "file"
    }
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "lmedit_edit.json",
    }


def test_a_hub_that_refuses_is_one_line(
    lmedit: Run, model: Path, base: Lm, hub: type[FakeHub]
) -> None:
    hub.denies = True
    write_patch("one", base)
    done = lmedit("publish", "one.safetensors", "-m", model, "-O", "pub", "--push", "me/tiny")
    assert done.exit_code == 1
    assert "cannot push to me/tiny" in done.stderr.splitlines()[-1]
    assert "hf_mine" not in done.output
    assert Path("pub", "README.md").is_file()
