"""Plain questions about a folder of notes that the model has never seen.

    python benchmarks/notes.py --out notes-run [--model MODEL]

The notes are the descriptions of installed Python packages, as Markdown and reStructuredText files.
The questions are plain ones with the package that answers them; a passage counts as right if it
comes from its file, an answer if it contains one of the accepted texts. Prints and writes
recall@1 and @5 of hybrid, implicit, lexical (BM25) and dense (MiniLM) retrieval, and answers.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imprag import ImpRAG
from imprag.corpus import load_corpus
from imprag.index.folder import IndexFolder
from imprag.retrieval.retriever import RetrievedPassage
from machine import origin

LONGEST = 14_000  # characters; longer descriptions hold a history of changes


class Question(NamedTuple):
    """A question, the package whose description answers it, and texts that an answer contains."""

    text: str
    package: str
    accepted: Sequence[str]


def read_questions() -> list[Question]:
    lines = Path(__file__).with_name("notes_questions.jsonl").read_text().splitlines()
    return [Question(**json.loads(line)) for line in lines]


def write_notes(folder: Path) -> None:
    """Write the descriptions of all installed packages, but very long or short ones."""
    folder.mkdir(parents=True)
    for package in importlib.metadata.distributions():
        text = str(package.metadata.get_payload() or package.metadata.get("Description", ""))
        kind = package.metadata.get("Description-Content-Type", "")
        if 600 <= len(text) <= LONGEST:
            suffix = ".rst" if not kind or "rst" in kind else ".md"
            (folder / f"{package.metadata['Name']}{suffix}").write_text(text)


def comes_from(passage: RetrievedPassage, package: str) -> bool:
    """Whether a passage is from a package's file."""
    return Path(passage.passage.id.partition("/")[0]).stem == package


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to make or to reuse")
    parser.add_argument("--model", default="default")
    options = parser.parse_args()
    if not (options.out / "notes").is_dir():
        write_notes(options.out / "notes")
    rag = ImpRAG.from_pretrained(options.model, dtype="float32")
    corpus = load_corpus([str(options.out / "notes")])
    index = options.out / f"index-{rag.encoder.fingerprint()[:8]}"
    IndexFolder.build(corpus, rag.encoder, index)
    there = {path.stem for path in (options.out / "notes").iterdir()}
    installed = [one for one in read_questions() if one.package in there]
    asked = [one.text for one in installed]
    results = {**origin(), "passages": len(corpus), "questions": len(installed)}
    for name in ("hybrid", "implicit", "lexical", "dense"):
        rag = ImpRAG.from_pretrained(options.model, index, retrieval=name, dtype="float32")
        found = rag.retrieve(asked, 10)
        right = [
            [comes_from(passage, one.package) for passage in passages]
            for one, passages in zip(installed, found, strict=True)
        ]
        answers = [answer.text for answer in rag.generate(asked)]
        correct = [
            any(text in answer.lower() for text in one.accepted)
            for one, answer in zip(installed, answers, strict=True)
        ]
        results[name] = {
            "recall@1": float(np.mean([one[0] for one in right])),
            "recall@5": float(np.mean([any(one[:5]) for one in right])),
            "answered": float(np.mean(correct)),
        }
        print(name, results[name], flush=True)
        results[name]["answers"] = dict(zip(asked, answers, strict=True))
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
