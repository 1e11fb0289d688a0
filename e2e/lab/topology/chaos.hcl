# What `make chaos` breaks: three servers of Consul with a controller each, a cloud with two
# processors, and one with a single one.
surroundings_of = "two-zones.hcl"

zone "ops" {
  subnet = "10.100.0.0/24"

  node "orchestrator" {
    kind    = "orchestrator"
    address = "10.100.0.10"
  }
  node "controller2" {
    kind          = "orchestrator"
    address       = "10.100.0.11"
    consul_server = true
  }
  node "controller3" {
    kind          = "orchestrator"
    address       = "10.100.0.12"
    consul_server = true
  }
}

zone "aws1" {
  subnet = "10.101.0.0/24"

  node "aws1-p1" {
    kind    = "processor"
    address = "10.101.0.10"
  }
  node "aws1-p2" {
    kind    = "processor"
    address = "10.101.0.20"
  }
  node "aws1-w1" {
    kind    = "workload"
    address = "10.101.0.11"
    drivers = ["raw_exec"]
  }
  node "aws1-w2" {
    kind    = "workload"
    address = "10.101.0.12"
    drivers = ["raw_exec"]
  }
}

zone "gcp1" {
  subnet = "10.102.0.0/24"

  node "gcp1-p1" {
    kind    = "processor"
    address = "10.102.0.10"
  }
  node "gcp1-w1" {
    kind    = "workload"
    address = "10.102.0.11"
    drivers = ["raw_exec"]
  }
}
