"""Objects in S3, Azure, GCS and on web servers."""
