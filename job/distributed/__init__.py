"""With whom a process runs, when it must stop, and how it ends.

Others use launcher: allocation, die_with_launcher, die_with_parent, end_time, node, node_disk, run_name, slurm_job,
speaks, started_by, under_slurm, world_size; group: Group, start; meeting.nodes: nodes_in_words, nodes_looked_at,
slow_nodes, writing; cores: keep_to_own, peaks, share_of_cores; preemption: SIGNALS, Preemption; request: OPTIONS,
answer, asked, megabytes, minutes, signal_lead; ending: complain, entry, lost_contact, reason; startup: began, mark,
spending, spent, summary, switch.
"""
