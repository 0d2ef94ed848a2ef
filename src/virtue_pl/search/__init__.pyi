from .rows import EncodedRow as EncodedRow
from .rows import EncodingFacts as EncodingFacts
from .rows import row_schema as row_schema
from .rows import to_table as to_table
