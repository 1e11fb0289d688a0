domain "shop" {
  reject = "no"
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  external "payments" {
    names = ["https://api.example.com/v1", "api.example.com:443", "API.example.com", "api.example.com.", "192.0.2.1", "bücher.example"]
  }
  external "wild" {
    names = ["*", "*.com", "api.*.example.com", "*.*.example.com", "com", "web.shop.sif", "1.0.0.127.in-addr.arpa", "localhost", "a..b", "", "x.example", "x.example"]
  }
  external "none" {
    names = []
  }
  external "empty" {
  }
  external "postgres" {
    exit = "zone"
    consul {
      service    = "sif-shop--web"
      datacenter = "DC1"
      within     = ["0.0.0.0/0", "10.20.0.1/16"]
    }
    consul {
      service = "other"
      within  = ["10.0.0.0/8"]
    }
  }
  external "redis" {
    exit = ""
    consul {
      service = "re*"
    }
  }
  external "nothing" {
    consul {
      datacenter = ""
      within     = []
    }
  }
  external "telemetry" {
    prefixes = ["192.0.2.1"]
    node {}
  }
  external "statsd" {
    exit = "node"
    node {
      ports = [8125]
    }
  }
  external "otlp" {
    exit = "node"
    node {}
  }
}

binding "shop" {
  nomad {}
  outside {
    names      = ["https://api.example.com", "**", "*.sif", "*.com", "*.com"]
    node_ports = ["1-1024", 8125, 8125]
  }
  outside {
    names = []
  }
}
