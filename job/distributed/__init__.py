"""With whom a process runs, when it must stop, and how it ends.

Others use launcher: allocation, die_with_launcher, end_time, run_name, slurm_start, speaks, under_slurm;
group: Group, start; cores: keep_to_own; request: OPTIONS, answer,
asked, megabytes, minutes, signal_lead; preemption: SIGNALS, Preemption; ending: complain, entry, lost_contact, reason;
startup: mark, summary.
"""
