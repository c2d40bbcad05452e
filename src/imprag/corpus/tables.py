"""Reads records from Parquet files, Arrow files and Hugging Face datasets."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from imprag.corpus.records import Record
from imprag.errors import ImpRAGError
from imprag.io.optional import require

_BATCH_ROWS = 1024


def parquet_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file."""
    import pyarrow.parquet as pq  # imported late: it takes half of the package's import time

    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow)
            yield from _rows(path, file.iter_batches(_BATCH_ROWS, columns=columns))
    except pa.ArrowException as error:
        raise ImpRAGError(f"{path} is not a complete Parquet file: {_line(error)}") from error


def arrow_records(path: Path) -> Iterator[Record]:
    """Yield the rows of an Arrow IPC file or stream."""
    try:
        with pa.memory_map(str(path)) as source:
            try:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(0)
                batches = file = pa.ipc.open_stream(source)
            columns = _columns(file.schema)
            yield from _rows(path, (_validated(batch.select(columns)) for batch in batches))
    except (pa.ArrowException, SystemError) as error:
        raise ImpRAGError(f"{path} is not a complete Arrow file: {_line(error)}") from error


def dataset_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a Hugging Face dataset written by ``save_to_disk``."""
    require(f"reading {path}", "eval", "datasets")
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
        columns = [
            name
            for name, feature in dataset.features.items()
            if name == "meta" or isinstance(feature, datasets.Value)
        ]
        for number, fields in enumerate(dataset.select_columns(columns), 1):
            yield Record(f"{path}, row {number}", fields)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        raise ImpRAGError(f"{path} is not a complete dataset: {_line(error)}") from error


def _columns(schema: pa.Schema) -> list[str]:
    """The columns to read: all except nested ones, such as embeddings stored with the text."""
    names = [
        column.name
        for column in schema
        if column.name == "meta" or not pa.types.is_nested(column.type)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ImpRAGError(f"two columns are called {twice[0]!r}; give every column its own name")
    return names


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, after a check that its offsets lie within its data; reading others may crash."""
    batch.validate(full=True)
    return batch


def _rows(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for start in range(0, len(batch), _BATCH_ROWS):
            for fields in batch.slice(start, _BATCH_ROWS).to_pylist():
                number += 1
                yield Record(f"{path}, row {number}", fields)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
