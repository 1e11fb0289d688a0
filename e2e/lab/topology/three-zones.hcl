# Two clouds and a site of one node: `make dev TOPOLOGY=e2e/lab/topology/three-zones.hcl`.
surroundings_of = "two-zones.hcl"

zone "ops" {
  subnet = "10.100.0.0/24"

  node "orchestrator" {
    kind    = "orchestrator"
    address = "10.100.0.10"
  }
}

zone "aws1" {
  subnet  = "10.101.0.0/24"
  subnet6 = "2001:db8:101::/64"

  node "aws1-p1" {
    kind     = "processor"
    address  = "10.101.0.10"
    address6 = "2001:db8:101::10"
  }
  node "aws1-w1" {
    kind     = "workload"
    address  = "10.101.0.11"
    address6 = "2001:db8:101::11"
    drivers  = ["docker", "exec"]
  }
  node "aws1-w2" {
    kind     = "workload"
    address  = "10.101.0.12"
    address6 = "2001:db8:101::12"
    drivers  = ["docker", "exec"]
  }
}

zone "gcp1" {
  subnet  = "10.102.0.0/24"
  subnet6 = "2001:db8:102::/64"

  node "gcp1-p1" {
    kind     = "processor"
    address  = "10.102.0.10"
    address6 = "2001:db8:102::10"
  }
  node "gcp1-w1" {
    kind     = "workload"
    address  = "10.102.0.11"
    address6 = "2001:db8:102::11"
    drivers  = ["exec"]
  }
  node "gcp1-w2" {
    kind     = "workload"
    address  = "10.102.0.12"
    address6 = "2001:db8:102::12"
    drivers  = ["exec"]
  }
}

zone "dc1" {
  subnet  = "10.103.0.0/24"
  subnet6 = "2001:db8:103::/64"

  node "dc1-p1" {
    kind     = "processor"
    address  = "10.103.0.10"
    address6 = "2001:db8:103::10"
  }
  node "dc1-w1" {
    kind     = "workload"
    address  = "10.103.0.11"
    address6 = "2001:db8:103::11"
    drivers  = ["exec"]
  }
}
