"""What several tests share: pictures, tables, models, and servers."""
