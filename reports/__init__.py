"""Rendering: named queries in, Markdown, HTML, JSON and figures out."""
