"""Write `docs/reference/json.md` from the package's JSON schemas: `python docs/make_json_page.py`.

The tests compare the page with the output of `page`, and real results with the schemas.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMAS = ("edit", "edit-best", "edit-many", "audit", "abilities", "results", "patch")
HEAD = """# JSON output

Example: print the probability of the new answer before and after an edit.

```text
lmedit edit ft --fact fact.json --json > edit.json
python3 -c "import json; e = json.load(open('edit.json'))
print(e['before']['target_new'], e['after']['target_new'])"
```

Most commands take `--json`. They print one JSON object on stdout. Notes and progress go to stderr.
This page lists the keys of seven objects: an edit, an edit within a budget, an edit of many facts,
an audit, abilities, the results of a comparison, and the facts of a patch. A dot leads into an
object, `[]` into an array, and `*` stands for any key. A value may be null only if its type says
so.

The package contains each table as a JSON schema (draft 2020-12), in `lmedit/schemas/`:

```python
import json
from importlib.resources import files

schema = json.loads((files("lmedit") / "schemas" / "edit.schema.json").read_text(encoding="utf-8"))
```

The schemas allow further keys, so your program should ignore keys that it does not know.
`docs/make_json_page.py` writes this page from the schemas.
"""


def schema_of(name: str) -> dict[str, Any]:
    """The schema *name* of the package."""
    text = (files("lmedit") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    return json.loads(text)


def keys(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key with its path and its own schema, in the order of the file."""
    yield from _below(schema, schema, "")


def _below(part: dict[str, Any], root: dict[str, Any], path: str) -> Iterator[Any]:
    named = {**part.get("properties", {}), **part.get("patternProperties", {})}
    if isinstance(free := part.get("additionalProperties"), dict):
        named["*"] = free
    for name, each in named.items():
        place = f"{path}.{name}" if path else name
        whole = _resolve(each, root)
        yield place, whole
        inner = _resolve(whole.get("items", {}), root)
        yield from _below(whole, root, place)
        yield from _below(inner, root, f"{place}[]")


def _resolve(part: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """*part* with what its `$ref` names; a description beside the reference wins."""
    if "$ref" not in part:
        return part
    return {**root["$defs"][part["$ref"].rpartition("/")[2]], **part}


def type_of(part: dict[str, Any]) -> str:
    """The type of a value in a few words."""
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    kinds = part["type"] if isinstance(part["type"], list) else [part["type"]]
    return " or ".join(kinds)


def table(schema: dict[str, Any]) -> str:
    """The keys of *schema* as a table."""
    lines = ["| key | type | unit | meaning |", "|---|---|---|---|"]
    for path, part in keys(schema):
        cells = (
            f"`{_simplify(path)}`",
            type_of(part),
            part.get("x-unit", ""),
            part.get("description", ""),
        )
        lines.append("| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |")
    return "\n".join(lines)


def _simplify(path: str) -> str:
    """Patterns as a reader knows them."""
    simple = path.replace("^portability/(?!.*_(ci|sd)$)", "portability/NAME")
    return simple.replace("_ci$", "MEASURE_ci").replace("_sd$", "MEASURE_sd")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in SCHEMAS:
        schema = schema_of(name)
        file = f"Schema: `lmedit/schemas/{name}.schema.json`."
        parts.append(f"## {schema['title']}\n\n{schema['description']} {file}\n\n{table(schema)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    place = Path(__file__).parent / "reference" / "json.md"
    place.write_text(page(), encoding="utf-8")
