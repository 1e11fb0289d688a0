# An owner who reaches outside beyond the binding, and the binding.
domain "shop" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  external "payments" {
    names = ["api.example.com", "*.cdn.example.com", "api.example.org"]
  }
  external "postgres" {
    consul {
      service = "postgres"
      within  = ["10.20.0.0/16", "10.30.0.0/16"]
    }
  }
  external "host" {
    node {}
  }
  contract "agents" {
    originators = ["web"]
    responders  = ["host"]
    rule {
      protocol = "tcp"
      ports    = ["8500-8502", 4317]
    }
  }
}

domain "blog" {
  external "host" {
    node {}
  }
}

binding "shop" {
  nomad {}
  outside {
    prefixes   = ["10.20.0.0/16"]
    names      = ["*.example.com"]
    node_ports = [8500, "8502-8600"]
  }
}

binding "blog" {
  nomad {}
}
