"""Reads short answers from the Factbook's entries.

Every reader takes the text of an entry and returns the forms of its answer, the best first. The
list is empty if the entry has no short, unambiguous value. The form in the text is always among
them, possibly with other capitals: "Emmanuel MACRON" becomes "Emmanuel Macron".
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

Reader = Callable[[str], list[str]]

_MAX_WORDS = 12
_NOTHING = {"", "NA", "N/A", "none", "unknown", "NEGL"}
_NUMBER = r"-?\$?-?\d[\d,]*(?:\.\d+)?(?: (?:million|billion|trillion)\b)?"
_DATE = re.compile(r"\b(\d{1,2}) ([A-Z][a-z]{2,8})(?: (\d{3,4}))?\b")
_PARENTHESES = re.compile(r"\s*(?:\([^()\[\]]*\)|\[[^()\[\]]*\])")
_ROMAN = re.compile(r"[IVX]+")
# Titles before a name. The name follows the last title that leaves a surname.
_TITLE = re.compile(
    r"\b(?:President|Ministers?|King|Queen|Sultan|Amir|Emperor|Pope|Prince|Duke|Leader|Premier"
    r"|Governor|Commissioner|Chancellor|Chairman|Chairperson|Chair|Taoiseach|Council|Commission"
    r"|Confederation|Affairs|Secretary|Administrator|Ambassador|General|Gen\.|Col\.|Capt\.|Lt\."
    r"|Dr\.|Sir|Dame|Regent|Mayor|Mann|Sheikh|Ratu|Tan Sri|Government|Assembly|Executive|Marshal)"
    r",?\s+(?:of (?:China|Spain|French Polynesia)\s+)?"
)


def text(entry: str) -> list[str]:
    """The whole entry; names in parentheses are other forms."""
    run_together = re.search(r"[a-z]{3}[A-Z]", entry)  # "AsiaEurope"
    return names(entry) if len(entry.split()) <= _MAX_WORDS and not run_together else []


def first_clause(entry: str) -> list[str]:
    clause = _outside_parentheses(entry).split(";")[0].strip()
    usable = len(clause.split()) <= _MAX_WORDS and not re.search(r"^formerly| - ", clause)
    return _forms([clause]) if usable else []


def names(entry: str) -> list[str]:
    """A name, and the names in parentheses after it."""
    if re.search(r"\([^()]*\(", entry):
        return []
    name, *notes = re.split(r" ?\(([^()]*)\)(?=$| \(| -)", entry.split("; ")[0])
    others = [other.strip() for note in notes for other in re.split(r"[,/;]", note)]
    proper = [other for other in others if re.fullmatch(r"[^\W\d_a-z][^.:]*", other)]
    return _forms([name, *proper])


def alternatives(entry: str) -> list[str]:
    """``Ellas or Ellada`` gives both."""
    return _forms(re.split(r"\s*(?:/|;|,| or )\s*", _outside_parentheses(entry)))


def former_names(entry: str) -> list[str]:
    parts = re.split(r"\s*[,;]\s*", _outside_parentheses(entry))
    proper = [part for part in parts if part[:1].isupper() and " is " not in f" {part} "]
    return _forms(proper)


def demonyms(entry: str) -> list[str]:
    """``Chadian(s)`` gives the singular and the plural."""
    found = []
    for part in re.split(r"\s*(?:;|,|/|\bor\b)\s*", entry.split("; note")[0]):
        singular = _outside_parentheses(part)
        found.append(singular)
        if "(s)" in part:
            found.append(f"{singular}s")
    return _forms(found)


def capitals(entry: str) -> list[str]:
    """All capitals of a country, in the order of the entry."""
    found = []
    for part in re.split(r"; |(?<=\)), ", entry):
        part = re.sub(r" in [A-Z]\w+(?= \(|\)$)| is the \w+ capital$", "", part)
        if part[:1].isupper() and "administered" not in part:
            found += [name for name in names(part) if not re.search(r" is | recognized", name)]
            # "Kyiv (Kiev is the transliteration from Russian)", "Rangoon (aka Yangon, …)"
            found += re.findall(r"\((?:aka )?([A-Z]\w+)(?:,| is) [a-z]", part)
    return _forms(found)


def quantity(entry: str) -> list[str]:
    """``147,181 sq km`` with and without the unit and the separators.

    A number of one or two digits needs its unit: alone it would be found in any passage.
    """
    match = re.fullmatch(rf"({_NUMBER})(%?(?: \D.*)?)", _before_note(entry))
    if not match or len(match[2].split()) > 6:
        return []
    number, unit = match[1], match[2].rstrip()
    forms = [number + unit]
    if unit.startswith("%"):
        forms += [f"{number}%", f"{number} percent"]
    if sum(character.isdigit() for character in number) > 2:
        forms.append(number)
    return _forms([*forms, *(form.replace(",", "", number.count(",")) for form in forms)])


def percentage(entry: str) -> list[str]:
    match = re.match(r"-?\d+(?:\.\d+)?%", entry)
    return quantity(match[0]) if match else []


def count(entry: str) -> list[str]:
    match = re.match(r"\d[\d,]*(?=$| ?\(|;)", entry)
    return _forms([match[0], match[0].replace(",", "")]) if match else []


def age(entry: str) -> list[str]:
    match = re.match(r"(\d\d) years of age", entry)
    return [match[1], f"{match[1]} years", f"{match[1]} years of age"] if match else []


def first_date(entry: str) -> list[str]:
    """The only date of an entry; notable earlier dates do not count."""
    head = _outside_parentheses(entry.split("; notable earlier")[0])
    dates = [match for match in _DATE.finditer(head) if match[3]]
    return _date_forms(dates[0]) if len(dates) == 1 and head.startswith(dates[0][0]) else []


def former_ruler(entry: str) -> list[str]:
    """``the UK`` of ``… (from the UK)``; trusteeships and mandates have no single ruler."""
    found = re.findall(r"\(from ((?:the )?[A-Z][\w .]*)\)", entry)
    if len(found) != 1 or re.search(r" and |administ|mandate|trustee|control|status", found[0]):
        return []
    return _forms([found[0], found[0].removeprefix("the ")])


def holiday(entry: str) -> list[str]:
    match = _only_holiday(entry)
    return _forms(name.strip() for name in match[0].split("/")) if match else []


def holiday_date(entry: str) -> list[str]:
    match = _only_holiday(entry)
    return _date_forms(match[1]) if match else []


def symbols(entry: str) -> list[str]:
    """All symbols together, then each one."""
    if entry.startswith("no ") or "official" in entry:
        return []
    items = re.split(r"\s*[,;]\s*(?:and )?", _outside_parentheses(entry))
    together = ", ".join(items)
    return _forms([together, *items]) if len(together.split()) <= _MAX_WORDS else []


def colors(entry: str) -> list[str]:
    if not re.fullmatch(r"[a-z-]+(?: [a-z-]+)?(?:, [a-z-]+(?: [a-z-]+)?)*", entry):
        return []
    most, _, last = entry.rpartition(", ")
    return [entry, f"{most} and {last}", f"{most}, and {last}"] if most else [entry]


def anthem(entry: str) -> list[str]:
    """The title between quotation marks, and its translation."""
    match = re.fullmatch(r'["“]([^"”“]+)["”](?: \(([^()]+)\))?', entry)
    return _forms([match[1], (match[2] or "").strip("“”")]) if match else []


def composer(entry: str) -> list[str]:
    return _authors(entry, -1)


def lyricist(entry: str) -> list[str]:
    return _authors(entry, 0)


def person(entry: str) -> list[str]:
    """A person's name without and with the title; the Factbook writes surnames in capitals."""
    head = re.split(r" \((?:since|chairperson|for the)|;|, (?:represented|chief)", entry)[0]
    head = _outside_parentheses(head)
    if not _has_surname(head) or re.search(r"\bvacant\b|\band\b|designate", head):
        return []
    name = head
    for title in _TITLE.finditer(head):
        if _has_surname(head[title.end() :]):
            name = head[title.end() :]
    name = re.split(r" of (?:the )?[A-Z]", name)[0]
    return _forms([_natural_case(name), _natural_case(head)])


def time_zone(entry: str) -> list[str]:
    match = re.match(r"UTC(?: 0|[+-]\d+(?:\.\d+)?)", entry)
    return [match[0]] if match else []


def place_with_height(entry: str) -> list[str]:
    match = _place_and_height(entry)
    if not match or not match[1][0].isupper() or re.search(r"unnamed|, | was$", match[1]):
        return []
    place = re.sub(r" on .*", "", match[1])
    places = [place] if place.endswith((" Oceans", " Seas")) else place.split("/")
    return _forms([*places, *re.findall(r"\(([A-Z][\w' -]{2,30})\)", entry)])


def height(entry: str) -> list[str]:
    match = _place_and_height(entry)
    return quantity(f"{match[2]} m") if match else []


def official_language(entry: str) -> list[str]:
    """The official language, if the entry calls only one official."""
    found = re.findall(r"([A-Z][\w'’ -]*?)(?: [\d.]+%)? \(official\b", entry)
    only_one = len(found) == 1 == entry.count("official")
    return _forms([found[0].removesuffix(" only")]) if only_one else []


def largest_share(entry: str) -> list[str]:
    """The first of the named groups, if its share is the largest."""
    items = re.split(r"[,;] ", _outside_parentheses(entry))
    shares = [re.match(r"([^\d<>~%]+) [<>~]?(\d[\d.]*)(?:-[\d.]+)?%", item) for item in items]
    if not shares or not shares[0]:
        return []
    name = re.sub(r" (?:at least|approximately|more than|about|over)$", "", shares[0][1])
    largest = float(shares[0][2])
    is_largest = all(float(other[2]) < largest for other in shares[1:] if other)
    named = name[0].isupper() and len(name.split()) <= 5
    return _forms([name]) if named and is_largest else []


def largest_partner(entry: str) -> list[str]:
    return largest_share(entry)


def largest_city(entry: str) -> list[str]:
    sizes = {
        match[3].strip(): float(match[1].replace(",", "")) * (1e6 if match[2] else 1)
        for match in re.finditer(
            r"(\d[\d,.]*) (million )?([^\W\d][^,;()]*)(?: \([^()]*\))*(?=[,;]|$)", entry
        )
    }
    return _forms([_natural_case(max(sizes, key=lambda name: sizes[name]))]) if sizes else []


def longest_river(entry: str) -> list[str]:
    """The longest river, its English name first, which the entry has in parentheses."""
    lengths: dict[str, float] = {}
    for part in entry.split("; "):
        match = re.match(r"(.+?) - ([\d,]+) km", part)
        if match:
            name = re.sub(r" ?(?:\(shared|\[|river (?:source|mouth)).*", "", match[1])
            name = name.removesuffix(" river")
            lengths[name] = float(match[2].replace(",", ""))
    if not lengths:
        return []
    local, *english = names(max(lengths, key=lambda name: lengths[name]))
    return [*english, local]


def first_item(entry: str) -> list[str]:
    """The first item of a sorted list; lists with a year are sorted."""
    return _forms([entry.split(" (2")[0].split(",")[0]]) if re.search(r"\(20\d\d\)$", entry) else []


def currency(entry: str) -> list[str]:
    match = _currency(entry)
    if not match or " or " in match[1]:
        return []
    singular = re.sub(r"(?<![^aeiou]e)(?<!ai)s$", "", match[1])
    return _forms([match[1], singular])


def currency_code(entry: str) -> list[str]:
    match = _currency(entry)
    return [match[2]] if match else []


def internet_codes(entry: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"\.[a-z]{2}\b", entry))) if entry[:1] == "." else []


READERS: dict[str, Reader] = {
    reader.__name__: reader
    for reader in (
        *(text, first_clause, names, alternatives, former_names, demonyms, capitals),
        *(quantity, percentage, count, age, first_date, former_ruler, holiday, holiday_date),
        *(symbols, colors, anthem, composer, lyricist, person, time_zone, place_with_height),
        *(height, official_language, largest_share, largest_partner, largest_city),
        *(longest_river, first_item, currency, currency_code, internet_codes),
    )
}


def without_accents(value: str) -> str:
    """The letters of ``value`` without diacritics, and straight apostrophes."""
    decomposed = unicodedata.normalize("NFKD", value.replace("’", "'").replace("‘", "'"))
    return "".join(mark for mark in decomposed if not unicodedata.combining(mark))


def _forms(values: Iterable[str]) -> list[str]:
    """The distinct tidied values, followed by their forms without accents."""
    tidied = [value.strip(" ,;.") if value.endswith((",", ";", " ")) else value for value in values]
    usable = [value.strip() for value in tidied if value.strip() not in _NOTHING]
    return list(dict.fromkeys([*usable, *map(without_accents, usable)]))


def _outside_parentheses(entry: str) -> str:
    while (shorter := _PARENTHESES.sub("", entry)) != entry:
        entry = shorter
    return entry.strip()


def _before_note(entry: str) -> str:
    return re.split(r" \(|;| note\b", entry)[0].strip()


def _date_forms(match: re.Match[str]) -> list[str]:
    day, month, year = match.groups()
    return [match[0], f"{month} {day}, {year}" if year else f"{month} {day}"]


def _only_holiday(entry: str) -> tuple[str, re.Match[str]] | None:
    """The name and date of the holiday, if there is only one and its date is fixed."""
    head = _outside_parentheses(entry)
    dates = list(_DATE.finditer(head))
    if len(dates) != 1 or ";" in head:
        return None
    name = head[: dates[0].start()].removesuffix(", ")
    return (_natural_case(name), dates[0]) if name and "," not in name else None


def _authors(entry: str, part: int) -> list[str]:
    """The authors before or after the slash; without a slash, the one part counts as both."""
    parts = _outside_parentheses(entry.split(";")[0]).split("/")
    authors = re.split(r", (?:arranged|adapted|based)", parts[part])[0]
    named = _has_surname(authors) and not re.search(r" or |^adapted", authors)
    if len(parts) > 2 or not named or len(authors.split()) > _MAX_WORDS:
        return []
    together = _natural_case(authors)
    return _forms([together, *re.split(r", and |, | and ", together)])


def _has_surname(name: str) -> bool:
    return any(word.isupper() and len(word) > 1 for word in re.findall(r"[^\W\d_]+", name))


def _natural_case(name: str) -> str:
    """``Emmanuel MACRON`` becomes ``Emmanuel Macron``; ``Leo XIV`` keeps its number."""
    first, *others = name.split(" ")
    words = [_lowered(first), *(w if _ROMAN.fullmatch(w) else _lowered(w) for w in others)]
    return re.sub(
        r"(?<=[ -])(?:Of|Au|La|Es)(?=[ -])", lambda word: word[0].lower(), " ".join(words)
    )


def _lowered(word: str) -> str:
    lowered = re.sub(r"[^\W\d_a-z]{2,}", lambda capitals: capitals[0].capitalize(), word)
    return re.sub(r"'S$", "'s", lowered)


def _place_and_height(entry: str) -> re.Match[str] | None:
    return re.match(r"(.+?) (-?\d[\d,.]*)(?: m\b|$)", _outside_parentheses(entry))


def _currency(entry: str) -> re.Match[str] | None:
    return re.fullmatch(r"([^(;]+) \(([A-Z]{3})\) per US dollar", entry)
