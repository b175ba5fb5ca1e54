"""What people see of a run: a live console, plain lines, report.html."""
