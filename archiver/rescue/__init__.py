"""The stand-alone reader that ``archiver rescue-script`` writes."""
