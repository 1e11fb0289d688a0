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
}
