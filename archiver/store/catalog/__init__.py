"""The file catalog: what every archive of the store holds, directory by directory, as records in the database."""
