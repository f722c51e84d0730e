"""What people see.

Others use console: Console, fitting, plain_table, plain_text; notify: tell; text: by_rank, decimals, duration,
epoch_words, goodput, listed, percent, rounded, sparkline; run_page: write; index_page: write; comparison_page: Table,
html, markdown, tables.
"""
