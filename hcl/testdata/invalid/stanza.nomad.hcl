connectivity {}

job "a" {
  connectivity {}

  group "twice" {
    connectivity {}
    connectivity {}
  }
  group "task" {
    task "t" {
      connectivity {}
      config {
        connectivity {}
      }
    }
  }
  dynamic "group" {
    for_each = ["a"]
    content {
      connectivity {}
    }
  }
  group "label" {
    connectivity "d/s" {}
  }
  group "values" {
    connectivity {
      service   = "frontend"
      originate = []
      respond   = ["a/b/c", "Bad", local.x]
      mode      = "audit"
    }
  }
  group "bridge" {
    network {
      mode = "bridge"
    }
    connectivity {}
  }
  group "computed" {
    network {
      mode = var.mode
    }
    connectivity {}
  }
  group "taken" {
    meta = {
      "sif.service" = "d/other"
    }
    connectivity {
      service = "d/s"
    }
  }
  group "taken" {
    connectivity {}
  }
  group "dynamic" {
    dynamic "network" {
      for_each = [1]
      content {}
    }
    connectivity {}
  }
  group "dynamic-stanza" {
    dynamic "connectivity" {
      for_each = [1]
      content {}
    }
  }
  group "resolvers" {
    network {
      dns {
        servers = ["10.0.0.53", var.resolver]
      }
    }
    connectivity {}
  }
  group "resolvers-computed" {
    network {
      dns {
        servers = var.resolvers
      }
    }
    connectivity {}
  }
  group "resolvers-interpolated" {
    network {
      dns {
        servers = ["${attr.unique.network.ip-address}"]
      }
    }
    connectivity {}
  }
  group "resolvers-dynamic" {
    network {
      dynamic "dns" {
        for_each = [1]
        content {}
      }
    }
    connectivity {}
  }
}
