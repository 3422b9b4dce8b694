"""Which runs are compared, and what people see of it: tables, figures, pages."""
