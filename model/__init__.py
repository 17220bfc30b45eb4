"""Name -> network; model/losses: name -> loss."""
