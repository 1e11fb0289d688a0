binding "shop" {
  labels = { name = "x", env = "prod" }
  nomad {
    jobs = ["shop", "shop", ""]
  }
  nomad {
    jobs = []
  }
  nomad {
    namespace = ""
    job       = "shop"
  }
  consul {
    services = []
  }
  consul {
  }
  node {
  }
  node {
    zone = "*"
  }
  outside {
  }
  outside {
    prefixes = ["192.0.2.1/24", "x"]
    ports    = [0, 80, 80, "9-8", "http"]
    names    = ["*.example.org"]
  }
  outside {
    prefixes = []
  }
  service "a--b" {
    labels = {}
  }
  service "web" {
    labels = { domain = "x" }
  }
  service "web" {
  }
  guardrail {
  }
}

binding "shop" {
}

binding "Shop" {
}

binding "node" {
}

binding "*" {
  attach {
    services = ["db"]
    node     = "w1"
  }
  service "web" {
    labels = { pci = "yes" }
  }
}

binding "store" {
  attach {
    node = "w1"
  }
  attach {
    services = []
    node     = "w1"
  }
  attach {
    services = ["db", "db"]
    node     = ""
  }
  attach {
    services = ["db"]
    zone     = "aws1"
  }
  attach {
    services   = ["db"]
    node       = "*"
    node_class = "**"
  }
  attach {
    services  = ["db"]
    node_pool = "spot"
  }
  attach "db" {
  }
}
