"""Filtering of training data (report section 4.3, Figure 8).

verdict     what a rule looks at and says: Record -> Verdict
rules/      heuristics as pure functions, by name
near_duplicates     samples that are in the corpus twice
judge, judge_*, prompts     scores of an LLM: quality of text, repetition
config, plan, records, writers      what is read and written, and in which pieces
steps, executors, pipeline          the stages on datatrove: one machine, Slurm, Ray
findings, duplicates, judging       what each stage says about a row
sorting, decisions, statistics      kept, removed, queued; by policy and by people
review, review_page, report, explain, excerpts      for people
commands    `internvl filter ...`
"""
