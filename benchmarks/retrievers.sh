#!/usr/bin/env bash
# Evaluates BM25 and all-MiniLM-L6-v2 with the whole prompt as query ("none") and with the query that
# a person would write ("oracle"), and the untrained language model without and with in-context RAG.
#
#     benchmarks/retrievers.sh                                   # the factbook benchmark
#     WIKI_QUESTIONS=questions.jsonl.gz WIKI_PASSAGES=passages.jsonl.gz benchmarks/retrievers.sh
#
# Rerun after an interruption: finished batches are reused. RUNS is the folder of the runs; LIMIT is
# the number of examples of each task for the language model, while retrievers get all examples.
set -euo pipefail

RUNS=${RUNS:-runs}
LIMIT=${LIMIT:-200}

bench="$RUNS/factbook-bench"
[ -e "$bench" ] || imprag tasks build factbook --out "$bench"

factbook=(--data "$bench")
wiki=(--tasks "${WIKI_QUESTIONS:-}" --corpus "${WIKI_PASSAGES:-}")

for retriever in lexical dense; do
  for template in none oracle; do
    how=(--retrieval "$retriever" --query-template "$template" --retrieval-only)
    imprag eval "${factbook[@]}" "${how[@]}" --out "$RUNS/factbook-$retriever-$template"
    if [ -n "${WIKI_QUESTIONS:-}" ]; then
      imprag eval "${wiki[@]}" "${how[@]}" --out "$RUNS/wiki-$retriever-$template"
    fi
  done
done

lm=("${factbook[@]}" --model smollm2-135m --limit "$LIMIT")
imprag eval "${lm[@]}" --passages none --out "$RUNS/factbook-lm-alone"
imprag eval "${lm[@]}" --passages gold --in-context --out "$RUNS/factbook-lm-oracle"
imprag eval "${lm[@]}" --retrieval dense --in-context --out "$RUNS/factbook-lm-dense"

for benchmark in factbook wiki; do
  if [ -e "$RUNS/$benchmark-lexical-none" ]; then
    imprag compare "$RUNS/$benchmark"-{lexical,dense}-{none,oracle} \
      --html "$RUNS/$benchmark-retrievers.html" > "$RUNS/$benchmark-retrievers.md"
  fi
done
imprag compare "$RUNS"/factbook-lm-{alone,oracle,teacher} \
  --html "$RUNS/factbook-lm.html" > "$RUNS/factbook-lm.md"
