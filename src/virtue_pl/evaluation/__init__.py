"""What a test found: tables, reports, comparisons. Knows ranks and samples, never where they were streamed from."""
