locals {
  meta = {
    owner = "me"
  }
}

job "a" {
  group "block" {
    network {
      port "http" {
        to = 8080
      } # the port
    }

    connectivity {
      service = "d/s"
    }

    meta { # notes
      owner = "me"
    }
  }
  group "lines" {
    network {
      mode = "cni/sif"
    }
    meta = {
      owner = "me"
    }
    connectivity {
      service   = "d/s"
      originate = ["c"]
    }
  }
  group "one-line" {
    network { hostname = "x" }
    meta { owner = "me" }
    connectivity { service = "d/s" }
  }
  group "object" {
    network {}
    meta = { owner = "me", "b.c" = 1 }
    connectivity { respond = ["c"] }
  }
  group "mixed" {
    network {
      cni {
        args = { A = "b" }
      }
    }
    meta = { owner = "me",
      b = 1 }
    connectivity {
      service = "d/s"
    }
  }
  group "expression" {
    meta = local.meta
    connectivity {
      service = "d/s"
    }
  }
  group "all-roles" {
    connectivity {}
    count = 1
  }
  group "resolvers" {
    network {
      dns {
        servers  = ["10.0.0.53", "10.0.1.53"]
        searches = ["corp.example"]
      }
    }
    connectivity {}
  }
  group "resolvers-on-lines" {
    network {
      mode = "cni/sif"
      dns {
        servers = [ # of the site
          "10.0.0.53",
          "10.0.1.53",
        ]
        options = ["ndots:5"]
      }
    }
    connectivity {}
  }
  group "resolvers-one-line" {
    network {
      dns { searches = ["corp.example"] }
    }
    connectivity {}
  }
  group "resolvers-none" {
    network {
      mode = "cni/sif"
      dns {}
    }
    connectivity {}
  }
  group "resolvers-empty" {
    network {
      dns {
        servers = []
        options = ["ndots:2"]
      }
    }
    connectivity {}
  }
  group "resolvers-ours" {
    network {
      dns {
        servers = ["169.254.1.1", "10.0.0.53"]
      }
    }
    connectivity {}
  }
}
