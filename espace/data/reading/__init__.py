"""Files to tables of rows: readers, formats, schemas, splits. It knows columns, but not what they mean."""
