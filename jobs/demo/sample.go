// Copyright (c) The SIF Authors
// SPDX-License-Identifier: MPL-2.0

package main

// What providers on the internet would answer. It is fixed, so that tests can compare it.

// destination is a travel destination.
type destination struct {
	ID   string // as in URLs
	Name string // as shown
}

var destinations = []destination{
	{"lisbon", "Lisbon"},
	{"kyoto", "Kyoto"},
	{"reykjavik", "Reykjavík"},
	{"cape-town", "Cape Town"},
}

func destinationName(id string) (string, bool) {
	for _, d := range destinations {
		if d.ID == id {
			return d.Name, true
		}
	}
	return "", false
}

// news is one headline.
type news struct {
	Title   string `json:"title"`
	Section string `json:"section"`
}

// sight is one place worth seeing.
type sight struct {
	Name string `json:"name"`
	Note string `json:"note"`
}

// outlook is the weather of one day; temperatures in degrees Celsius.
type outlook struct {
	Day  string `json:"day"`
	Sky  string `json:"sky"`
	High int    `json:"high"`
	Low  int    `json:"low"`
}

var sampleNews = map[string][]news{
	"lisbon": {
		{"Tram 28 gets a second car on weekends", "Transport"},
		{"Tile museum opens its workshop to visitors", "Culture"},
		{"Sardine season starts a week early", "Food"},
	},
	"kyoto": {
		{"Maple leaves along the Philosopher's Path turn red", "Seasons"},
		{"Night opening for three temple gardens", "Culture"},
		{"New bus line joins the station and Arashiyama", "Transport"},
	},
	"reykjavik": {
		{"Clear skies promise northern lights until Thursday", "Nature"},
		{"Harbour pool keeps its doors open past midnight", "City"},
		{"Whale watchers count a record morning", "Nature"},
	},
	"cape-town": {
		{"Cableway back in service after its yearly check", "Transport"},
		{"Penguins return to Boulders Beach in numbers", "Nature"},
		{"Street musicians take over the Waterfront", "Culture"},
	},
}

var samplePlaces = map[string][]sight{
	"lisbon": {
		{"Belém Tower", "a fort in the river, best before noon"},
		{"Alfama", "steep lanes, and fado behind the doors"},
		{"Miradouro da Graça", "the city at your feet in the evening sun"},
	},
	"kyoto": {
		{"Fushimi Inari", "a thousand red gates up the hill"},
		{"Nishiki Market", "five blocks of things to taste"},
		{"Ryōan-ji", "fifteen stones, of which you see fourteen"},
	},
	"reykjavik": {
		{"Hallgrímskirkja", "a church like a basalt cliff"},
		{"Harpa", "concerts behind a wall of glass"},
		{"Grótta", "a lighthouse that the tide cuts off"},
	},
	"cape-town": {
		{"Table Mountain", "up by cable, down on foot"},
		{"Bo-Kaap", "houses in every colour"},
		{"Kirstenbosch", "a garden on the mountain's back"},
	},
}

var sampleWeather = map[string][]outlook{
	"lisbon": {
		{"Today", "Sunny", 22, 14},
		{"Tomorrow", "A few clouds", 20, 13},
		{"The day after", "Showers", 18, 12},
	},
	"kyoto": {
		{"Today", "Haze", 17, 8},
		{"Tomorrow", "Sunny", 18, 7},
		{"The day after", "Sunny", 19, 9},
	},
	"reykjavik": {
		{"Today", "Clear", 3, -2},
		{"Tomorrow", "Clear", 2, -4},
		{"The day after", "Snow", 0, -5},
	},
	"cape-town": {
		{"Today", "Windy", 24, 16},
		{"Tomorrow", "Sunny", 26, 17},
		{"The day after", "Sunny", 27, 17},
	},
}
