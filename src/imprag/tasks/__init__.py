"""Tasks: prompt template, data reader and answers of each; `load_task` finds one by name."""

from imprag.tasks import instruction, knowledge, synthetic
from imprag.tasks.example import Answer, Example, answers, read_examples, write_examples
from imprag.tasks.records import Record, read_records
from imprag.tasks.task import Task, load_task, register_task, task_names

__all__ = [
    "Answer",
    "Example",
    "Record",
    "Task",
    "answers",
    "instruction",
    "knowledge",
    "load_task",
    "read_examples",
    "read_records",
    "register_task",
    "synthetic",
    "task_names",
    "write_examples",
]
