"""From raw log files to the prepared data set: read, check, order, cut, scale."""
