# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# One application of whatever runs: containers, a process, a virtual machine, a service that systemd
# starts, and a periodic job. The graph does not know the difference.
#
#   users -> page -> planner -> news, places, weather
#            report (periodic) -> planner

domain "mixed-app" {

  # Browsers outside the fabric.
  external "users" {
    prefixes = ["10.99.0.0/24"]
  }

  service "page" { # a container, in aws1
    selector "nomad" {
      job   = "mixed"
      group = "page"
    }
  }

  service "planner" { # a process, in gcp1
    selector "nomad" {
      job   = "mixed"
      group = "planner"
    }
  }

  service "news" { # a virtual machine, in aws1
    selector "nomad" {
      job   = "mixed-news"
      group = "guest"
    }
  }

  service "places" { # a service of systemd outside Nomad, in gcp1
    selector "consul" {
      service = "mixed-places"
    }
  }

  service "weather" { # a container, in aws1
    selector "nomad" {
      job   = "mixed"
      group = "weather"
    }
  }

  service "report" { # a job that runs every minute
    selector "nomad" {
      job = "mixed-report"
    }
  }

  contract "users" {
    originators = ["users"]
    responders  = ["page"]
    rule {
      protocol = "tcp"
      ports    = [8080]
    }
  }

  contract "plans" {
    originators = ["page", "report"]
    responders  = ["planner"]
    rule {
      protocol = "tcp"
      ports    = [8080]
    }
  }

  contract "news-api" {
    originators = ["planner"]
    responders  = ["news"]
    rule {
      protocol = "tcp"
      ports    = [9001]
    }
  }

  contract "places-api" {
    originators = ["planner"]
    responders  = ["places"]
    rule {
      protocol = "tcp"
      ports    = [9002]
    }
  }

  contract "weather-api" {
    originators = ["planner"]
    responders  = ["weather"]
    rule {
      protocol = "tcp"
      ports    = [9003]
    }
  }
}
