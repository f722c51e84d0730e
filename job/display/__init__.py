"""What people see.

Others use console: Console, plain_table, plain_text; text: duration, percent, decimals; run_page: write;
comparison_page: Table, html, markdown, tables.
"""
