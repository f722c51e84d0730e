"""What people see.

Others use console: Console, plain_table, plain_text; notify: tell; text: decimals, duration, goodput, percent;
run_page: write; comparison_page: Table, html, markdown, tables.
"""
