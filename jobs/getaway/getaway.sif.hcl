# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# Getaway: a page that shows news, places and weather of a destination.
#
#   users -> http-proxy -> getaway-svc -> news-gw
#                                      -> places-gw
#                                      -> weather-gw

domain "getaway-app" {

  # Browsers outside the fabric.
  external "users" {
    prefixes = ["10.99.0.0/24"]
  }

  service "http-proxy" {
    selector "nomad" {
      job   = "getaway-web"
      group = "proxy"
    }
  }

  service "getaway-svc" {
    selector "nomad" {
      job   = "getaway"
      group = "svc"
    }
  }

  # The instances of a gateway are one service in both clouds: any group of its
  # job.
  service "news-gw" {
    selector "nomad" {
      job = "news-gw"
    }
  }

  service "places-gw" {
    selector "nomad" {
      job = "places-gw"
    }
  }

  service "weather-gw" {
    selector "nomad" {
      job = "weather-gw"
    }
  }

  contract "users" {
    originators = ["users"]
    responders  = ["http-proxy"]
    rule {
      protocol = "tcp"
      ports    = [8080]
    }
  }

  contract "frontend" {
    originators = ["http-proxy"]
    responders  = ["getaway-svc"]
    rule {
      protocol = "tcp"
      ports    = [8080]
    }
  }

  contract "news-api" {
    originators = ["getaway-svc"]
    responders  = ["news-gw"]
    rule {
      protocol = "tcp"
      ports    = [9001]
    }
  }

  contract "places-api" {
    originators = ["getaway-svc"]
    responders  = ["places-gw"]
    rule {
      protocol = "tcp"
      ports    = [9002]
    }
  }

  contract "weather-api" {
    originators = ["getaway-svc"]
    responders  = ["weather-gw"]
    rule {
      protocol = "tcp"
      ports    = [9003]
    }
  }
}
