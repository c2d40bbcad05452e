"""Tasks: the prompt template, reader and metric of each; `load_task` loads one by name."""

from imprag.tasks import instruction, knowledge, self_supervised, synthetic
from imprag.tasks.benchmark import BENCHMARKS, Benchmark, load_benchmark, split_of_passages
from imprag.tasks.example import Answer, Example, Hops, answers, read_examples, write_examples
from imprag.tasks.open_corpus import write_open_corpus
from imprag.tasks.records import Record, read_records
from imprag.tasks.task import TASKS, Task, load_task, register_task, task_names
from imprag.tasks.task_examples import TaskExamples, read_tasks

__all__ = [
    "BENCHMARKS",
    "TASKS",
    "Answer",
    "Benchmark",
    "Example",
    "Hops",
    "Record",
    "Task",
    "TaskExamples",
    "answers",
    "instruction",
    "knowledge",
    "load_benchmark",
    "load_task",
    "read_examples",
    "read_records",
    "read_tasks",
    "register_task",
    "self_supervised",
    "split_of_passages",
    "synthetic",
    "task_names",
    "write_examples",
    "write_open_corpus",
]
