"""The sweep file: schema, search spaces, and trial keys."""
