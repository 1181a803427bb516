"""Where results live: result files of tiles, Parquet tables, and the views over them."""
