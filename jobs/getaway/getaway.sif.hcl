# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# Getaway: a page that shows news, places and weather of a destination.
#
#   users -> http-proxy -> getaway-svc -> news-gw    -> news.example.com
#                                      -> places-gw  -> places.example.com
#                                      -> weather-gw -> weather.example.net

domain "getaway-app" {

  # Browsers outside the fabric.
  external "users" {
    prefixes = ["10.99.0.0/24"]
  }

  # Who has the data, outside the fabric. The gateways can resolve these names and no others, and
  # reach just what they stand for.
  external "news-provider" {
    names = ["news.example.com"]
  }

  external "places-provider" {
    names = ["places.example.com"]
  }

  # The way out is the zone's processor, unless the workload's own node is to be it.
  external "weather-provider" {
    names = ["weather.example.net"]
    exit  = "node"
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

  contract "news-source" {
    originators = ["news-gw"]
    responders  = ["news-provider"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }

  contract "places-source" {
    originators = ["places-gw"]
    responders  = ["places-provider"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }

  contract "weather-source" {
    originators = ["weather-gw"]
    responders  = ["weather-provider"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
  }
}
